"""Weights whose large singular values are clipped while the small ones stay (Sedghi, Gupta and Long 2019)."""

import torch
from torch import Tensor, nn

from robustres.errors import ModelError

ROUNDS = 10


def clipped(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...], budget: float) -> Tensor:
    """The weight with singular values of at most about `budget`; for a convolution the exact bound is up to the caller.

    A convolution is clipped frequency by frequency on a torus and then cropped to its support, in turns: projections
    on two sets, the second of which leaves the first slightly.
    """
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        u, values, v = torch.linalg.svd(weight, full_matrices=False)
        matrix: Tensor = ((u * values.clamp_max(budget)) @ v).to(layer.weight.dtype)
        return matrix
    if layer.groups != 1 or {*layer.stride, *layer.dilation} != {1}:
        raise ModelError("only convolutions of stride 1 without groups and dilation can be clipped; use 'spectral'")
    rows, columns = weight.shape[2:]
    torus = (shape[1] + rows - 1, shape[2] + columns - 1)
    for _ in range(ROUNDS):
        symbols = torch.fft.rfft2(weight, s=torus).permute(2, 3, 0, 1)
        u, values, v = torch.linalg.svd(symbols, full_matrices=False)
        symbols = (u * values.clamp_max(budget)[..., None, :]) @ v
        weight = torch.fft.irfft2(symbols.permute(2, 3, 0, 1), s=torus)[..., :rows, :columns]
    return weight.to(layer.weight.dtype)
