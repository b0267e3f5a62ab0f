"""The lower estimate of a block: the best fixed slopes of its hidden units that an ascent finds."""

import math

import torch
from torch import Tensor

from robustres.certify.bound import Estimate
from robustres.certify.power_iteration import uniform_on_sphere
from robustres.certify.product_rounding import ALGORITHM_FACTOR, absolute_norm, product_error, product_roundings
from robustres.certify.residual_block import ResidualBlock
from robustres.certify.sector import GroupSort, Slopes
from robustres.numerics import gamma


def affordable_steps(block: ResidualBlock, *, operations: float = 1e10) -> int:
    """Steps that so many floating-point operations allow, between 10 and 480."""
    maps = (block.shortcut, *block.layers)
    each = sum(2 * product_roundings(map_) * max(map_.in_size, map_.out_size) for map_ in maps)
    return max(10, min(480, int(operations / max(each, 1))))


def mask_ascent(
    block: ResidualBlock, *, steps: int = 30, restarts: int = 3, generator: torch.Generator | None = None
) -> Estimate:
    """The norm of S + V D W from below, over diagonal D with slopes in [a, b] that are chosen freely.

    No bound that knows only the weights and the slopes can lie below it, since some biases attain it; this very
    network, whose biases are fixed, may stay below it. Each step multiplies by the current operator and its transpose
    and sets every slope to the end of [a, b] that increases |output|. Sorted groups keep their order (D = I).
    """
    source = torch.Generator().manual_seed(0) if generator is None else generator
    best = 0.0
    with torch.no_grad():
        for restart in range(restarts):
            vector = uniform_on_sphere(block.shortcut.in_shape, block.shortcut.device, source)
            best = max(best, _one_ascent(block, vector, steps, source if restart else None))
        error = product_error(block.shortcut) + _branch_error(block)
    return Estimate(max(0.0, best * (1 - 1e-12) - error), "free slopes")


def _one_ascent(block: ResidualBlock, vector: Tensor, steps: int, generator: torch.Generator | None) -> float:
    diagonals = [_first_slopes(block, index, generator) for index in range(len(block.slopes))]
    best = 0.0
    for _ in range(steps):
        length = float(torch.linalg.vector_norm(vector))
        if length == 0 or not math.isfinite(length):
            break
        vector = vector / length
        hidden, signal = [], vector
        for layer, diagonal in zip(block.layers, diagonals, strict=False):
            hidden.append(layer(signal))
            signal = diagonal * hidden[-1]
        image = block.shortcut(vector) + block.layers[-1](signal)
        best = max(best, float(torch.linalg.vector_norm(image)))
        gradient = image
        for index in reversed(range(len(diagonals))):
            gradient = block.layers[index + 1].adjoint(gradient)
            diagonals[index] = _better_slopes(block.slopes[index], gradient * hidden[index], diagonals[index])
            gradient = diagonals[index] * gradient
        vector = block.shortcut.adjoint(image) + block.layers[0].adjoint(gradient)
    return best


def _first_slopes(block: ResidualBlock, index: int, generator: torch.Generator | None) -> Tensor:
    """Every unit at the upper slope, or at one of the two by chance."""
    layer, slopes = block.layers[index], block.slopes[index]
    low, high = (1.0, 1.0) if isinstance(slopes, GroupSort) else slopes
    upper = torch.full((1, *layer.out_shape), high, dtype=torch.float64, device=layer.device)
    if generator is None:
        return upper
    chance = torch.rand(upper.shape, generator=generator, device=generator.device).to(layer.device)
    return torch.where(chance < 0.5, upper, torch.full_like(upper, low))


def _better_slopes(slopes: Slopes, gradient: Tensor, current: Tensor) -> Tensor:
    if isinstance(slopes, GroupSort):
        return current
    return torch.where(gradient > 0, slopes[1], slopes[0]).to(gradient)


def _branch_error(block: ResidualBlock) -> float:
    total = sum(product_roundings(layer) for layer in block.layers)
    return gamma(ALGORITHM_FACTOR * total) * math.prod(absolute_norm(layer) for layer in block.layers)
