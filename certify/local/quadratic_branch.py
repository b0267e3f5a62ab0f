"""Branch and bound with quadratic certificates: few parts, each of which has a much tighter bound. A search.

A split at the kink of an activation makes it linear on both parts (`pinned`), which removes its inequality, and adds a
constraint, which enters the row with a multiplier. The fixed point of `searched` is continued from that of the parent,
and the multipliers of the constraints follow their derivatives, at steps that grow while these keep their sign.
"""

import bisect
import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import thread_time

import torch
from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.blocks.increments import increments
from robustres.certify.graph.network import Linear, Node
from robustres.certify.local.branch import Tree
from robustres.certify.local.evidence import Branch, Split
from robustres.certify.local.intermediate import Bounds, bounded
from robustres.certify.local.parts import Way
from robustres.certify.local.pinned import arguments, kinked, narrowed, pinned
from robustres.certify.local.program import Program
from robustres.certify.local.quadratic import sectors
from robustres.certify.local.sets import Region, half_widths
from robustres.certify.local.steps import Activation
from robustres.certify.local.tangents import BEFORE, OneSided, tangents
from robustres.certify.maps.linear_map import as_rows, in_precision

COPIES = 8
ROOT_STEPS, TRIAL_STEPS, STEPS = 40, 10, 15
CANDIDATES = 2
# First step of a constraint's multiplier, relative to the ratio of the row's and its constraint's changes; its growth
# and its fall.
FIRST, GROWTH, FALL = 0.1, 1.3, 0.4
# The change that a certificate proves is about a thousandth above the value that its search reached.
SHARE = 1.003
# A part counts as closed beyond this share of what its parent lacks.
ENOUGH = 0.2
# The proof of a part takes about as long as this many steps; some of that is left over at the end of the search anyway.
PROOF = 40
MOST = 1000  # parts


@dataclass(eq=False)
class _Held:
    """Constraints on the argument of one activation, which `node` computes: coordinates (K,), multipliers, their signs,
    and the argument at the centre minus the constraint's point."""

    node: Node
    coordinates: Tensor
    multipliers: Tensor
    signs: Tensor
    beyond: Tensor
    step: Tensor | None = None
    last: Tensor | None = None

    def move(self, pull: Tensor, length: Tensor, value: float) -> None:
        """One step. pull: (K,) the change of the argument along the row's largest one. length: of all its changes."""
        slope = self.beyond - pull
        if self.step is None or self.last is None:
            self.step, self.last = FIRST * value / length, torch.zeros_like(slope)
        same = slope * self.last
        self.step = torch.where(same > 0, GROWTH * self.step, torch.where(same < 0, FALL * self.step, self.step))
        self.last = slope
        moved = self.multipliers + self.step * (4 * slope / length).clamp(-1, 1)
        self.multipliers = torch.where(self.signs > 0, moved.clamp_min(0), moved.clamp_max(0))


class _PartIteration(OneSided):
    """The fixed point for a row of the output and of the arguments that constraints hold."""

    held: Sequence[_Held] = ()

    def output(self, values: Mapping[Node, Tensor]) -> Tensor:
        """(r, 1) the row's change."""
        out = super().output(values)
        self.read = [as_rows(values[one.node])[:, one.coordinates] for one in self.held]
        for one, z in zip(self.held, self.read, strict=True):
            out = out + (z @ one.multipliers)[:, None]
        self.out = out.detach()
        return out

    def adjust(self, value: float) -> None:
        """Move the multipliers of all constraints, too."""
        super().adjust(value)
        for one, z in zip(self.held, self.read, strict=True):
            pull = (z.detach() * self.out).sum(dim=0) / max(value, 1e-30)
            one.move(pull, z.detach().norm(dim=0).clamp_min(1e-9), value)

    @property
    def shift(self) -> float:
        """What the constraints add to the margin at the centre."""
        return sum(float((one.multipliers * one.beyond).sum()) for one in self.held)


@dataclass(eq=False)
class _Search:
    """seconds, steps: of all fixed points so far."""

    program: Program
    region: Region
    bounds: Bounds
    row: Tensor
    limit: float
    seconds: float = 0.0
    steps: int = 0
    count: "itertools.count[int]" = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        order = self.program.order
        self.maps = {
            node: in_precision(node.piece.map, torch.float32) for node in order if isinstance(node.piece, Linear)
        }
        self.arguments, self.kinks = arguments(self.program), kinked(self.program)
        self.box = half_widths(self.region) if self.region.norm == "linf" else None
        self.scale = float(self.region.eps[0]) if self.region.norm == "l2" else 1.0

    def leaf(self, way: Way, start: Branch, steps: int) -> Branch:
        """A certificate for a part, from where the search of another one ended."""
        iteration, margin = self._iteration(way, start)
        begun = thread_time()
        point = iteration.adjusted(steps, 0.0, before=1 if start.point is not None else BEFORE)
        self.seconds, self.steps = self.seconds + thread_time() - begun, self.steps + point.steps
        multipliers: dict[Split, float] = {}
        for splits, one in zip(_latest(way).values(), iteration.held, strict=True):
            multipliers |= dict(zip((split for split, _ in splits.values()), one.multipliers.tolist(), strict=True))
        left = margin + iteration.shift - SHARE * self.scale * point.value
        return Branch(left, {}, multipliers, point=point)

    def _iteration(self, way: Way, start: Branch) -> tuple[_PartIteration, float]:
        """The fixed point of a part, and the margin at its centre."""
        part = pinned(self.program, way)
        centre = bounded(part, self.region.with_eps(0.0), rows=False)
        layers = increments(
            self.program.order, slopes=sectors(part, narrowed(self.program, self.bounds, way), centre)
        )  # fmt: skip
        made = _PartIteration(
            self.program.order, layers, self.row, self.box, COPIES, torch.float32, start.point, self.maps
        )
        made.begin(tangents(part, centre), {} if start.point is None else start.point.tangents)
        made.held = [self._held(place, splits, start, centre) for place, splits in _latest(way).items()]
        middle = (centre.lower[-1][0] + centre.upper[-1][0]) / 2
        return made, float((self.row @ middle)[0]) - self.limit

    def _held(self, place: int, splits: Mapping[int, tuple[Split, bool]], start: Branch, centre: Bounds) -> _Held:
        step, device = self.program.steps[place], self.program.device
        assert isinstance(step, Activation)
        coordinates = torch.tensor(list(splits), device=device)
        points = torch.tensor([split.point for split, _ in splits.values()], dtype=torch.float64, device=device)
        given = torch.tensor([start.multipliers.get(split, 0.0) for split, _ in splits.values()], device=device)
        signs = torch.tensor([-1.0 if above else 1.0 for _, above in splits.values()], device=device)
        beyond = (centre.lower[step.source].flatten()[coordinates] - points).float()
        return _Held(self.arguments[place], coordinates, given, signs, beyond)

    def candidates(self, way: Way, branch: Branch) -> list[Split]:
        """The splits at the kinks that cost the row most on the image's side of the kink.

        There the activation becomes its tangent: by the derivative of the row's largest change with respect to the
        activation's answer, times its distance from the tangent.
        """
        iteration, _ = self._iteration(way, branch)
        slopes = iteration.sweep()[2]
        nodes = [node for node in iteration.distances if self.kinks.get(node) is not None]
        if not nodes:
            return []
        sizes = []
        for node in nodes:
            cost = (slopes[node] * iteration.distances[node]).sum(dim=0) / iteration.half[node][1].clamp_min(1e-9)
            sizes.append(torch.where(iteration.signs[node] != 0, cost, 0.0))
        starts = list(itertools.accumulate(map(len, sizes), initial=0))
        top = torch.cat(sizes).topk(min(CANDIDATES, starts[-1]))
        found = []
        for value, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            kind = bisect.bisect_right(starts, index) - 1
            if value > 0:
                found.append(Split(self.kinks[nodes[kind]], index - starts[kind], 0.0))
        return found

    def cut(self, way: Way, branch: Branch) -> list[tuple[Branch, Way]]:
        """Split a branch at the best of a few candidates; empty if there is none."""
        best, found = -math.inf, None
        for split in self.candidates(way, branch):
            ways: list[Way] = [(*way, (split, above)) for above in (False, True)]
            parts = [self.leaf(one, branch, TRIAL_STEPS) for one in ways]
            values = [min(part.value, ENOUGH * abs(branch.value)) for part in parts]
            merit = min(values) + 0.1 * max(values)
            if merit > best:
                best, found = merit, (split, list(zip(parts, ways, strict=True)))
        if found is None:
            return []
        split, made = found
        made = [(self.leaf(one, part, STEPS), one) for part, one in made]
        for part, _ in made:
            part.value = max(part.value, branch.value)
        branch.split, branch.parts = split, (made[0][0], made[1][0])
        branch.point, branch.multipliers = None, {}
        return made


def branched_quadratically(
    program: Program,
    region: Region,
    bounds: Bounds,
    row: Tensor,
    limit: float,
    *,
    left: Callable[[], float],
    most: int = MOST,
) -> Tree:
    """Split the region (of one sample) until certificates prove that the row (1, outputs) exceeds its limit everywhere.

    program: in float64. bounds: on the region, of a search. left: seconds until the search must end.
    """
    search = _Search(program, region, bounds, row, limit)
    with torch.no_grad():
        root = search.leaf((), Branch(0.0), ROOT_STEPS)
        waiting: list[tuple[float, int, Branch, Way]] = [(root.value, next(search.count), root, ())]
        parts = 1
        while waiting[0][0] <= 0 and parts < most:
            if left() <= PROOF * parts * search.seconds / search.steps:
                break
            value, _, branch, way = heapq.heappop(waiting)
            made = search.cut(way, branch)
            parts += 1
            if not made:
                heapq.heappush(waiting, (value, next(search.count), branch, way))
                break
            for part, longer in made:
                if part.value > 0:
                    part.point = _proving(part.point)
                heapq.heappush(waiting, (part.value, next(search.count), part, longer))
    return Tree(root, waiting[0][0], parts)


def _proving(point: FixedPoint | None) -> FixedPoint | None:
    """What a proof needs of it."""
    return None if point is None else replace(point, change=torch.empty(0), directions={})


def _latest(way: Way) -> dict[int, dict[int, tuple[Split, bool]]]:
    """By place and coordinate, the latest split of a way."""
    found: dict[int, dict[int, tuple[Split, bool]]] = {}
    for split, above in way:
        found.setdefault(split.place, {})[split.coordinate] = split, above
    return found
