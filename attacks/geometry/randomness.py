"""Random numbers that depend only on (seed, sample index, restart, draw).

Counter-based: every number is a hash of its coordinates (the finaliser of SplitMix64; Steele, Lea and Flood 2014,
"Fast splittable pseudorandom number generators"). Results therefore do not depend on the batch size, the order of the
samples, their distribution over processes, or the device, and no generator's state is touched.
"""

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def _shifted(z: Tensor, bits: int, into: Tensor) -> Tensor:
    """Logical right shift; the shift of torch is arithmetic."""
    return torch.bitwise_right_shift(z, bits, out=into).bitwise_and_((1 << (64 - bits)) - 1)


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, elementwise on int64 with wrap-around; overwrites z."""
    shifted = torch.empty_like(z)
    z.bitwise_xor_(_shifted(z, 30, shifted)).mul_(_FIRST)
    z.bitwise_xor_(_shifted(z, 27, shifted)).mul_(_SECOND)
    return z.bitwise_xor_(_shifted(z, 31, shifted))


def sample_keys(seed: int, index: Tensor, restart: Tensor) -> Tensor:
    """One key (N,) int64 per sample and restart; `index` and `restart` are (N,) int64."""
    key = torch.full_like(index, seed)
    for coordinate in (restart, index):
        key = _mixed(key * 2 + 1 + coordinate * _GOLDEN)
    return key


def _bits(keys: Tensor, shape: tuple[int, ...], draw: Tensor | int) -> Tensor:
    """Hashes (N, *shape) int64 of key, draw number ((N,) or one for all) and position."""
    stream = _mixed(keys + (torch.as_tensor(draw, device=keys.device) + 1) * _FIRST)
    position = torch.arange(1, math.prod(shape) + 1, device=keys.device) * _GOLDEN
    return _mixed(stream[:, None] + position[None, :]).reshape(len(keys), *shape)


def uniform(keys: Tensor, shape: tuple[int, ...] = (), *, draw: Tensor | int = 0, dtype: torch.dtype) -> Tensor:
    """Numbers uniform on [0, 1), (N, *shape), from keys (N,)."""
    bits = 53 if dtype == torch.float64 else 24
    hashes = _bits(keys, shape, draw)
    return _shifted(hashes, 64 - bits, hashes).to(dtype).mul_(2.0**-bits)


def integers(keys: Tensor, high: Tensor | int, shape: tuple[int, ...] = (), *, draw: Tensor | int = 0) -> Tensor:
    """Integers uniform on {0, ..., high - 1}, (N, *shape) int64; high at most 2^31 and broadcastable."""
    return below(high, words(keys, shape, draw=draw))


def words(keys: Tensor, shape: tuple[int, ...] = (), *, draw: Tensor | int = 0) -> Tensor:
    """The source of `integers`: numbers of 32 random bits, (N, *shape) int64."""
    hashes = _bits(keys, shape, draw)
    return _shifted(hashes, 32, hashes)


def below(high: Tensor | int, words: Tensor) -> Tensor:
    """Integers on {0, ..., high - 1} from words of 32 random bits."""
    return (words * high) >> 32


def normal(keys: Tensor, shape: tuple[int, ...], *, draw: Tensor | int = 0, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers, (N, *shape) (Box and Muller 1958)."""
    pair = uniform(keys, (2, *shape), draw=draw, dtype=torch.float64)
    radius = torch.log1p(-pair[:, 0]).mul_(-2.0).sqrt_()
    return radius.mul_(pair[:, 1].mul_(2.0 * math.pi).cos_()).to(dtype)
