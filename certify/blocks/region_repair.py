"""The repair of the multipliers of one region of a torus, chosen at the few frequencies that decide.

The best repair depends on how far the search has converged: too gentle a one leaves a nearly singular pivot, whose
inverse inflates everything before it, and too strong a one loses its lift at every layer. Both show at the frequencies
that carry the change of the input, so repairs are compared there, at a small part of the cost of a proof. Nothing here
has to be exact: the proof at all frequencies follows.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.blocks.front import Repair
from robustres.certify.blocks.torus_network import Region
from robustres.certify.fourier.torus import coarse_frequencies

START = Repair(1e-3, 2e-2)
# Line searches: the exponents of the factor for lift and share. The share matters most while the search has not
# converged, the lift where the multipliers of the search are nearly admissible.
LINES = ((4.0, 0, 1), (2.0, 0, 1), (10.0, 1, 0), (3.0, 0, 1))
LEAST, MOST = 1e-6, 0.5
GAIN = 1e-3  # relative gain of the square below which a step does not count


def critical_frequencies(region: Region, point: FixedPoint, count: int) -> Tensor:
    """(count, 2): the coarse frequencies that carry most of the change of a region's input in the search."""
    every = coarse_frequencies(region.torus)
    entrance = region.order[0]
    x = point.change.to(torch.float64)
    if entrance in point.directions:
        sizes = point.sizes[entrance].to(x)
        g = point.directions[entrance].to(x)
        x = (g.reshape(len(g), len(sizes), -1) * sizes[:, None]).reshape(len(g), *entrance.shape)
    (first, second), residues = region.torus.points, region.multiplicity[entrance]
    laid = x.reshape(-1, first, residues[0], second, residues[1])
    power = torch.fft.fftn(laid, dim=(1, 3)).abs().square().sum((0, 2, 4))
    energy = power[every[:, 0], every[:, 1]]
    return every[energy.topk(min(count, len(every))).indices]


def best_repair(square: Callable[[Repair], float], trials: int) -> Repair:
    """The repair with the smallest square among at most `trials`, found by line searches over lift and share."""
    values: dict[Repair, float] = {}

    def better(repair: Repair, than: Repair) -> bool:
        if repair not in values:
            if len(values) >= trials:
                return False
            values[repair] = square(repair)
        return values[repair] < (1 - GAIN) * values[than]

    best = START
    values[best] = square(best)
    for factor, lifts, shares in LINES:
        for step in (1 / factor, factor):
            moved = False
            while better(following := _moved(best, step**lifts, step**shares), best):
                best, moved = following, True
            if moved:
                break
    return best


def _moved(repair: Repair, lift: float, share: float) -> Repair:
    """The repair with other factors, within limits."""
    lift, share = (min(max(side, LEAST), MOST) for side in (repair.lift * lift, repair.share * share))
    return replace(repair, lift=lift, share=share)
