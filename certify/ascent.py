"""The strongest lower estimate of a Lipschitz constant: ascent over inputs and directions, ending in a witness."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustres.certify.jacobian import Function, norms, scaled, steepest_directions, unit
from robustres.certify.witness import Measured, Witness, as_witness, safe_ratios
from robustres.errors import InputError

# Distances of the pairs tried at the end, relative to the norm of the input: the ratio of a pair that lies within
# one linear piece does not depend on the distance, and the farther apart, the less rounding matters.
_REACH = (1.0, 0.1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Search:
    """How hard to look for a pair of inputs that the function drives apart.

    rounds: how often the best inputs so far are perturbed and climbed from again.
    lanczos_steps: of the iteration on J^T J at each input. ascent_steps: of the ascent on the ratio of a pair.
    batch_size: inputs climbed together. seconds: stop climbing after so long. seed: of every random number.
    """

    rounds: int = 4
    lanczos_steps: int = 40
    ascent_steps: int = 150
    batch_size: int = 16
    seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "lanczos_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.ascent_steps < 0 or not self.seconds > 0 or self.seed < 0:
            raise InputError("ascent_steps and seed must be at least 0 and seconds positive")


def strongest_witness(function: Measured, starts: Tensor, *, search: Search, enough: float = math.inf) -> Witness:
    """The pair with the largest safely rounded ratio |f(x') - f(x)| / |x' - x| that was found from `starts` (B, ...).

    From each start: the steepest direction of the Jacobian; ascent on the ratio of a pair along it, both ends free;
    the steepest direction there; and again from perturbed copies of the best inputs. Inputs may leave [0, 1], since a
    Lipschitz constant is about all of them. The pair is an estimate from below: it can refute, never certify.

    enough: a ratio at which there is nothing left to find, such as a bound.
    """
    deadline = time.monotonic() + search.seconds
    generator = torch.Generator().manual_seed(search.seed)
    found: list[Pair] = []
    for batch in torch.split(starts.to(torch.float64), search.batch_size):
        for pair in _climb(function, batch, search, generator, deadline):
            found.append(pair)
            if pair.ratio >= enough:
                return as_witness(function, pair.x, pair.other)
    best = max(found, key=lambda pair: pair.ratio)
    return as_witness(function, best.x, best.other)


class Pair(NamedTuple):
    """Two inputs (*input shape) and the safe ratio of their answers."""

    ratio: float
    x: Tensor
    other: Tensor


def _climb(
    function: Measured, x: Tensor, search: Search, generator: torch.Generator, deadline: float
) -> Iterator[Pair]:
    """Better and better pairs, mostly, from one batch of starts."""
    for round_ in range(search.rounds):
        reach = 0.3 * 3.0**-round_  # from across many linear pieces to a single one
        steepest = steepest_directions(
            function, x, _normal_like(x, generator), steps=search.lanczos_steps, deadline=deadline
        )
        yield _strongest(function, _pairs(x, steepest.direction))
        apart = scaled(reach * _lengths(x), steepest.direction)
        middle, spread = ascend(function, x, apart, steps=search.ascent_steps, deadline=deadline)
        there = steepest_directions(function, middle, spread, steps=search.lanczos_steps, deadline=deadline)
        yield _strongest(function, [(middle - spread / 2, middle + spread / 2), *_pairs(middle, there.direction)])
        if round_ + 1 == search.rounds or time.monotonic() > deadline:
            return
        order = there.stretch.argsort(descending=True)[: max(1, len(x) // 2)]
        parents = middle[order].repeat(2, *[1] * (x.ndim - 1))[: len(x)]
        x = parents + scaled(reach / 3 * _lengths(parents), unit(_normal_like(parents, generator)))


def _pairs(x: Tensor, direction: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pairs along the directions at several distances."""
    return [(x, x + scaled(reach * _lengths(x), direction)) for reach in _REACH]


def _strongest(function: Measured, pairs: Sequence[tuple[Tensor, Tensor]]) -> Pair:
    """Of batches of pairs, the one with the largest safe ratio."""
    ratios = torch.stack([safe_ratios(function, x, other) for x, other in pairs])
    row, sample = divmod(int(ratios.argmax()), ratios.shape[1])
    x, other = pairs[row]
    return Pair(float(ratios[row, sample]), x[sample], other[sample])


def ascend(function: Function, x: Tensor, direction: Tensor, *, steps: int, deadline: float) -> tuple[Tensor, Tensor]:
    """Adam on log |f(x + d/2) - f(x - d/2)| - log |d| over x and d (B, ...) together; each sample's best x and d.

    The ratio of a pair that lies apart sees how the Jacobian changes with x, which the Jacobian of a piecewise linear
    network does not. Steps are relative to the length of d and shrink, and d may grow and shrink.
    """
    length = norms(direction)
    shift = torch.zeros_like(x).requires_grad_()
    spread = scaled(1 / length, direction).requires_grad_()
    rate = 0.3 / x[0].numel() ** 0.5
    optimiser = torch.optim.Adam([shift, spread], lr=rate)
    best_value = torch.full_like(length, -torch.inf)
    best_x, best_direction = x, direction
    for step in range(steps):
        if time.monotonic() > deadline:
            break
        with torch.enable_grad():
            there, apart = x + scaled(length, shift), scaled(length, spread)
            value = _log_norms(function(there + apart / 2) - function(there - apart / 2)) - _log_norms(apart)
            gradients = torch.autograd.grad(value.sum(), (shift, spread), materialize_grads=True)
        better = value.detach() > best_value
        best_value = torch.where(better, value.detach(), best_value)
        best_x = _where(better, there.detach(), best_x)
        best_direction = _where(better, apart.detach(), best_direction)
        shift.grad, spread.grad = (-gradient.nan_to_num(0.0, 0.0, 0.0) for gradient in gradients)
        optimiser.param_groups[0]["lr"] = rate * 10 ** -(step / steps)
        optimiser.step()
    return best_x, best_direction


def _log_norms(x: Tensor) -> Tensor:
    """(B,): the logarithm of each norm, its gradient safe from overflow."""
    scale = norms(x.detach()).clamp_min(torch.finfo(x.dtype).tiny)
    return torch.add(torch.linalg.vector_norm(scaled(1 / scale, x).flatten(1), dim=1).log(), scale.log())


def _where(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Sample by sample, `new` where `chosen` (B,)."""
    return torch.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _lengths(x: Tensor) -> Tensor:
    """(B,): the norm of each input, 1 for an input that is zero."""
    length = norms(x)
    return torch.where(length > 1e-200, length, torch.ones_like(length))


def _normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
