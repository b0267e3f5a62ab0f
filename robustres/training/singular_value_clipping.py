"""Weights whose large singular values are clipped while the small ones stay (Sedghi, Gupta and Long 2019)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.errors import ModelError

ROUNDS = 10


def clipped(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...], budget: float) -> Tensor:
    """The weight with singular values of at most about `budget`; for a convolution the caller must enforce the exact
    bound.

    A convolution is alternately clipped frequency by frequency on a torus and cropped to its support: projections onto
    two sets, the second of which slightly leaves the first. Strides are handled by phases: on every s-th pixel in each
    direction the convolution is one of stride 1 with s^2 times the channels. Groups are clipped separately; a dilated
    kernel has the symbols of the kernel, at multiples of the frequencies.
    """
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return _capped(weight, budget).to(layer.weight.dtype)
    stride, dilation = set(layer.stride), set(layer.dilation)
    if len(stride) > 1 or (stride != {1} and dilation != {1}):
        raise ModelError(
            "a stride of its own for each axis, or a stride with a dilation, is not clipped; use 'spectral'"
        )
    step = int(layer.stride[0])
    grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
    phases = _phases(grouped, step)
    taps = phases.shape[-2:]
    torus = [-(-side // step) + count - 1 for side, count in zip(shape[1:], taps, strict=True)]
    for _ in range(ROUNDS):
        symbols = torch.fft.rfft2(phases, s=torus).permute(0, 3, 4, 1, 2)
        symbols = _capped(symbols, budget).permute(0, 3, 4, 1, 2)
        kept = torch.fft.irfft2(symbols, s=torus)[..., : taps[0], : taps[1]]
        grouped = _from_phases(kept, step, weight.shape[2:])
        phases = _phases(grouped, step)
    return grouped.flatten(0, 1).to(layer.weight.dtype)


def _capped(matrices: Tensor, budget: float) -> Tensor:
    """The matrices (..., m, n) with singular values of at most `budget`."""
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    capped: Tensor = (u * values.clamp_max(budget)[..., None, :]) @ v
    return capped


def _phases(kernels: Tensor, step: int) -> Tensor:
    """Kernels (g, out, in, h, w) of stride s as kernels (g, out, in s^2, h', w') of stride 1 on every s-th pixel."""
    rows, columns = kernels.shape[-2:]
    padded = functional.pad(kernels, (0, -columns % step, 0, -rows % step))
    lead, (rows, columns) = padded.shape[:3], padded.shape[-2:]
    split = padded.reshape(*lead, rows // step, step, columns // step, step)  # (g, out, in, h', s, w', s)
    return split.permute(0, 1, 2, 4, 6, 3, 5).flatten(2, 4)


def _from_phases(phases: Tensor, step: int, size: tuple[int, ...]) -> Tensor:
    """The inverse of `_phases`, cropped to kernels of that size."""
    groups, rows, channels, *taps = phases.shape
    split = phases.reshape(groups, rows, channels // step**2, step, step, *taps)
    kernels = split.permute(0, 1, 2, 5, 3, 6, 4).flatten(5, 6).flatten(3, 4)  # (g, out, in, h' s, w' s)
    return kernels[..., : size[0], : size[1]]
