"""The joint bound of a block: multipliers from the fixed-point iteration, then the smallest value that they prove.

Small blocks are treated as one real matrix with a multiplier for every neuron; others are laid on a torus, with a
multiplier for every channel. The bound is valid regardless of the search.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustres.certify.blocks.cost import region_cost
from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.blocks.frequency_search import critical, entries, search_at
from robustres.certify.blocks.front import Repair
from robustres.certify.blocks.increments import Increment
from robustres.certify.blocks.network_forms import REPAIRS, plain_form, proof_within
from robustres.certify.blocks.reduced_block import ReducedBlock, reduced_block
from robustres.certify.blocks.reduced_proof import glance_cost, proved_square
from robustres.certify.blocks.residual_block import ResidualBlock
from robustres.certify.blocks.torus_bound import region_bound
from robustres.certify.blocks.torus_network import NotLaidError, Region, image_on_tori
from robustres.certify.fourier.torus import coarse_frequencies
from robustres.certify.graph.network import Node
from robustres.numerics import rounded_up

DENSE_WIDTH = 700  # largest number of inputs and hidden units of a block treated neuron by neuron
DENSE_STEPS, DENSE_TOLERANCE = 800, 1e-6
FIRST_STEPS, MOST_FIRST_STEPS, STEPS, TOLERANCE = 16, 60, 100, 1e-5
LEAST_ACTIVE, ACTIVE = 32, 96  # frequencies in the search after the first steps
ACTIVE_SHARE = 0.15  # of the effort for their first steps, if the proof finds out which frequencies are missing
SEARCH_SHARE, FIRST_SHARE = 0.8, 0.3  # of the effort, with the rest for the lower estimate; of it, for the torus
LEAST_EFFORT = 0.2  # less gives multipliers that hardly improve on the textbook bound
ROUNDS = 5  # rounds of adding frequencies that a proof has found missing
# Nominal seconds of a step, of each entry of its matrices and of each coordinate of a node.
PER_STEP, PER_ENTRY, PER_VALUE = 1.2e-3, 4e-9, 1e-7
PER_ROW = 1e-6  # nominal seconds of a proof for each coordinate of a node at each frequency, beside its products
LIFTS = (1e-6, 1e-4, 1e-3, 1e-2, 5e-2)  # relative increases of the multipliers for a reduced form
CLOSE = 1 + 2e-4  # ratio of proved to reached value that is close enough
TOO_DEAR = 4.0  # no search if one check of all frequencies takes more than this multiple of the effort


def is_dense(block: ResidualBlock) -> bool:
    """Whether the block is treated neuron by neuron."""
    return block.shortcut.in_size + sum(layer.out_size for layer in block.layers[:-1]) <= DENSE_WIDTH


def joint_value(block: ResidualBlock, *, effort: float, limit: float) -> float:
    """The joint bound, infinite if the block has no torus, if no admissible multipliers were found, or if the effort
    is far too small for the products of its kernels.

    effort: nominal seconds. limit: another bound; larger values are of no use.
    """
    if is_dense(block):
        return _dense_value(block, effort)
    try:
        regions, layers = image_on_tori(block.network())
    except NotLaidError:
        return math.inf
    reduced = reduced_block(block, regions[0].multiplicity[regions[0].order[0]])
    if not layers:
        return math.inf
    return _OnTori(regions, layers, reduced, effort).bound(limit, block.cancelling(per_channel=True))


def image_value(output: Node, *, effort: float, limit: float) -> tuple[float, float]:
    """A bound of a network from images to images, with a multiplier per channel, infinite if none is found; and the
    value that its search reached, which is about the smallest such bound on the same torus (NaN without a search).

    effort, limit: as in `joint_value`. Raises NotLaidError if the network has no torus.
    """
    regions, layers = image_on_tori(output)
    search = _OnTori(regions, layers, None, effort)
    return search.bound(limit, None), search.reached


def _dense_value(block: ResidualBlock, effort: float) -> float:
    form = plain_form(block.network().ordered())
    steps = max(1, min(DENSE_STEPS, int(effort / (2 * form.step))))
    point = form.search(steps=steps, tolerance=DENSE_TOLERANCE)
    value, _ = proof_within(form, point, effort / 2, repairs=REPAIRS, near=CLOSE)
    cancelling = block.cancelling(per_channel=False)
    if cancelling is None:
        return value
    point = replace(point, multipliers=dict.fromkeys(form.layers, cancelling))
    return min(value, proof_within(form, point, effort / 2, repairs=REPAIRS, near=CLOSE)[0])


class _OnTori:
    """The search and the proof on the smallest tori, and their cost so far."""

    def __init__(
        self, regions: Sequence[Region], layers: Mapping[Node, Increment], reduced: ReducedBlock | None, effort: float
    ) -> None:
        self.regions, self.layers, self.reduced = regions, layers, reduced
        self.effort = SEARCH_SHARE * max(effort, LEAST_EFFORT)
        first = regions[0]
        values = sum(first.channels(node) for node in first.order)
        self.each = PER_ENTRY * entries(first) + PER_VALUE * values  # nominal seconds of a frequency in a step
        count = len(coarse_frequencies(first.torus))
        whole = region_cost(first, layers) + PER_ROW * count * values
        self.proof = whole if reduced is None else glance_cost(reduced, count)
        affordable = int(ACTIVE_SHARE * self.effort / (FIRST_STEPS * self.each))
        self.active = ACTIVE if reduced is None else min(ACTIVE, max(LEAST_ACTIVE, affordable))
        self.spent, self.reached = 0.0, math.nan

    def bound(self, limit: float, guess: Tensor | None) -> float:
        """The smallest bound below the limit, infinite if there is none. guess: multipliers of a single layer."""
        if self.proof + FIRST_STEPS * self.each * self.active > TOO_DEAR * self.effort:
            return math.inf
        region, active = self._torus()
        best = math.inf
        if guess is not None:
            point = self._searched(region, active, FIRST_STEPS, 0.0)
            best, _ = self._proved(region, replace(point, multipliers=dict.fromkeys(self.layers, guess)), limit)
        for turn in range(ROUNDS):
            steps = min(STEPS * 2**turn, int((self.effort - self.spent - self.proof) / self._step(len(active))))
            point = self._searched(region, active, max(steps, FIRST_STEPS), 0.0 if turn else TOLERANCE)
            self.reached = point.value
            if not 0 < point.value < min(best, limit):
                break
            value, missed = self._proved(region, point, limit)
            best = min(best, value)
            if best <= CLOSE * point.value or self.spent + 2 * self.proof > self.effort:
                break
            unseen = ~(missed[:, None] == active).all(2).any(1)
            active = torch.cat((active[critical(point, self.active)], missed[unseen][: self.active // 2]))
        return best

    def _step(self, frequencies: int) -> float:
        return PER_STEP + self.each * frequencies

    def _searched(self, region: Region, frequencies: Tensor, steps: int, tolerance: float) -> FixedPoint:
        point = search_at(region, self.layers, frequencies, steps=steps, tolerance=tolerance)
        self.spent += point.steps * self._step(len(frequencies))
        return point

    def _torus(self) -> tuple[Region, Tensor]:
        """The torus on which the first steps reach the smallest value, and the frequencies relevant there."""
        share = FIRST_SHARE * self.effort
        best: tuple[float, Region, Tensor] | None = None
        for region in self.regions:
            every = coarse_frequencies(region.torus)
            affordable = max(self.active, int((share / FIRST_STEPS - PER_STEP) / self.each))
            some = every[:: math.ceil(len(every) / affordable)]
            steps = min(MOST_FIRST_STEPS, max(FIRST_STEPS, int(share / len(self.regions) / self._step(len(some)))))
            if best is not None and self.spent + steps * self._step(len(some)) > 1.01 * share:
                break
            point = self._searched(region, some, steps, 0.0)
            if best is None or point.value < best[0]:
                best = point.value, region, some[critical(point, self.active)]
        assert best is not None
        return best[1:]

    def _proved(self, region: Region, point: FixedPoint, limit: float) -> tuple[float, Tensor]:
        """The value that the multipliers prove, and the frequencies that require other multipliers, worst first."""
        best, missed = math.inf, torch.zeros(0, 2, dtype=torch.long)
        for lift in LIFTS:
            if self.reduced is None:
                value = region_bound(region, self.layers, point, repair=Repair(lift, lift))
            else:
                values = torch.cat([point.multipliers[node] for node in region.order if node in self.layers])
                values = (1 + lift) * values.clamp_min(1e-9 * float(values.max()))
                square, open_ = proved_square(
                    self.reduced, region.torus, values, near=point.value**2, limit=min(limit, best) ** 2
                )
                value = rounded_up(math.sqrt(square), 4)
                missed = open_ if lift == LIFTS[0] else missed
            self.spent += self.proof
            best = min(best, value)
            if best <= CLOSE * point.value or best < value or self.spent + self.proof > self.effort:
                break
        return best, missed
