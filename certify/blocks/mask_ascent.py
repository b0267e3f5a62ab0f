"""The lower estimate of a block: the best fixed slopes, or orders, of its hidden units found by ascent."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.blocks.residual_block import ResidualBlock
from robustres.certify.maps.rounding import ALGORITHM_FACTOR, absolute_norm, product_error
from robustres.certify.maps.sector import GroupSort
from robustres.certify.maps.sorting import in_groups, out_of_groups
from robustres.certify.norms.power_iteration import uniform_on_sphere
from robustres.certify.proof.bound import Estimate
from robustres.numerics import gamma

OPERATIONS = 1e10  # floating-point operations of all steps together, about


def affordable_steps(block: ResidualBlock) -> int:
    """Number of steps of an ascent of this block, between 10 and 480."""
    maps = (block.shortcut, *block.layers)
    each = sum(2 * map_.roundings * max(map_.in_size, map_.out_size) for map_ in maps)
    return max(10, min(480, int(OPERATIONS / max(each, 1))))


def mask_ascent(block: ResidualBlock, *, steps: int = 30, restarts: int = 3) -> Estimate:
    """Lower estimate of the norm of S + V D W over diagonal D with freely chosen slopes in [a, b].

    No bound that uses only the weights and the slopes can be smaller, since some biases attain this norm; the network
    itself, whose biases are fixed, may stay below it. Each step multiplies by the current operator and its transpose
    and sets every slope to the end of [a, b] that increases |output|. For sorted groups D permutes each group; the step
    sorts it in the order of the gradient (rearrangement inequality).
    """
    source = torch.Generator().manual_seed(0)
    best = 0.0
    with torch.no_grad():
        for restart in range(restarts):
            vector = uniform_on_sphere(block.shortcut.in_shape, block.shortcut.device, source)
            best = max(best, _one_ascent(block, vector, steps, source if restart else None))
        error = product_error(block.shortcut) + _branch_error(block)
    return Estimate(max(0.0, best * (1 - 1e-12) - error), "free slopes")


def _one_ascent(block: ResidualBlock, vector: Tensor, steps: int, generator: torch.Generator | None) -> float:
    patterns = [_first_pattern(block, index, generator) for index in range(len(block.slopes))]
    best = 0.0
    for _ in range(steps):
        length = float(torch.linalg.vector_norm(vector))
        if length == 0 or not math.isfinite(length):
            break
        vector = vector / length
        hidden, signal = [], vector
        for layer, pattern in zip(block.layers, patterns, strict=False):
            hidden.append(layer(signal))
            signal = pattern(hidden[-1])
        image = block.shortcut(vector) + block.layers[-1](signal)
        best = max(best, float(torch.linalg.vector_norm(image)))
        gradient = image
        for index in reversed(range(len(patterns))):
            gradient = block.layers[index + 1].adjoint(gradient)
            patterns[index] = patterns[index].better(gradient, hidden[index])
            gradient = patterns[index].adjoint(gradient)
        vector = block.shortcut.adjoint(image) + block.layers[0].adjoint(gradient)
    return best


@dataclass(frozen=True, eq=False)
class FixedSlopes:
    """Every unit times its own slope (1, ...), one of the two end points."""

    slopes: tuple[float, float]
    values: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.values * hidden

    def adjoint(self, gradient: Tensor) -> Tensor:
        return self.values * gradient

    def better(self, gradient: Tensor, hidden: Tensor) -> "FixedSlopes":
        """The slopes that make <gradient, D hidden> largest."""
        ends = torch.where(gradient * hidden > 0, self.slopes[1], self.slopes[0])
        return FixedSlopes(self.slopes, ends.to(gradient))


@dataclass(frozen=True, eq=False)
class FixedOrder:
    """Position i of each group contains the member `order[i]` (1, groups, size, ...)."""

    groups: GroupSort
    order: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        return out_of_groups(in_groups(hidden, self.groups).gather(2, self.order), self.groups)

    def adjoint(self, gradient: Tensor) -> Tensor:
        return out_of_groups(in_groups(gradient, self.groups).gather(2, self.order.argsort(2)), self.groups)

    def better(self, gradient: Tensor, hidden: Tensor) -> "FixedOrder":
        """The permutations that make <gradient, P hidden> largest, by sorting both in the same order."""
        ranks = in_groups(gradient, self.groups).argsort(2).argsort(2)
        return FixedOrder(self.groups, in_groups(hidden, self.groups).argsort(2).gather(2, ranks))


def _first_pattern(block: ResidualBlock, index: int, generator: torch.Generator | None) -> FixedSlopes | FixedOrder:
    """Every unit at the upper slope and every group in its order, or both at random."""
    layer, slopes = block.layers[index], block.slopes[index]
    chance = torch.zeros(1, *layer.out_shape, dtype=torch.float64)
    if generator is not None:
        chance = torch.rand(chance.shape, generator=generator, dtype=torch.float64, device=generator.device)
    chance = chance.to(layer.device)
    if isinstance(slopes, GroupSort):
        return FixedOrder(slopes, in_groups(chance, slopes).argsort(dim=2, stable=True))
    if generator is None:
        return FixedSlopes(slopes, torch.full_like(chance, slopes[1]))
    return FixedSlopes(slopes, torch.where(chance < 0.5, slopes[1], slopes[0]).to(chance))


def _branch_error(block: ResidualBlock) -> float:
    total = sum(layer.roundings for layer in block.layers)
    return gamma(ALGORITHM_FACTOR * total) * math.prod(absolute_norm(layer) for layer in block.layers)
