"""The whole network bounded at once, as a stage of `lipschitz`: what it skips and why; pairs of classes.

The product of the pieces' bounds assumes that every piece stretches what the piece before it stretched most. The
elimination of the layers does not (`certify.blocks.elimination`). It needs a factorisation as large as the widest
layer, so its cost is counted first, in seconds of a nominal core: the same effort gives the same bound.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch

from robustres.certify.blocks.elimination import Repair
from robustres.certify.blocks.fixed_point import FixedPoint, search
from robustres.certify.blocks.increments import BoundedLayer, Increment, SectorLayer, increments
from robustres.certify.blocks.network_bound import proved_bound
from robustres.certify.graph.network import Linear, Node, Product, Source
from robustres.certify.maps.nonlinear import Opaque
from robustres.certify.proof.bound import Guarantee

METHOD = "layers eliminated"
WIDEST = 6144  # coordinates of a layer that is eliminated at once: half a dozen matrices of that size take 2 GiB
SINGLE_PRECISION = 3000  # neurons from which the search runs in float32
NOMINAL = 2e10  # operations per second of the nominal core
PER_NODE = 1.5e-4  # nominal seconds of a sweep of the search at each node, however small
COPIES = 16
FIRST_STEPS, MOST_STEPS = 200, 1600
# From the gentlest repair of the multipliers to what deep chains need, until the bound is near what is reachable.
REPAIRS = (Repair(1e-6), Repair(1e-4), Repair(1e-3, 1e-3), Repair(1e-3, 1e-2), Repair(1e-3, 3e-2), Repair(1e-3, 0.1))
NEAR = 1 + 3e-3
FIRST_TOLERANCE = 3e-5
CLOSE = 1 + 1e-5  # proved over reachable: near enough
ATTAINED = 1 + 1e-3  # bound over estimate: no better bound is worth looking for
PAIR_STEPS = 60


@dataclass(frozen=True)
class WholeBound:
    """upper: of the l2 Lipschitz constant of all outputs together, proved; infinite where it was not found.

    reachable: an estimate of the smallest bound that multipliers of this kind (one per neuron) can prove; NaN where it
    was not sought. skipped: why there is no bound, empty where there is one. guarantee: of `upper`.
    """

    upper: float = math.inf
    reachable: float = math.nan
    skipped: str = ""
    guarantee: Guarantee = field(default_factory=Guarantee)
    seconds: float = 0.0


class WholeNetwork:
    """The elimination of one simplified network, within an effort in nominal seconds.

    pairs: bounds of the differences of two outputs, as far as they were asked for.
    """

    def __init__(self, output: Node, *, effort: float) -> None:
        self.order, self.effort = output.ordered(), effort
        self.multiplies = any(isinstance(node.piece, Product) for node in self.order)
        self.layers = {} if self.multiplies else increments(self.order)
        self.guarantee = _guarantee(self.order)
        neurons = sum(math.prod(layer.shape) for layer in self.layers.values())
        self.dtype = torch.float32 if neurons > SINGLE_PRECISION else torch.float64
        self.cost, self.widest = elimination_cost(self.order, self.layers)
        self.step = _step_cost(self.order)
        self._first_point: FixedPoint | None = None
        self.pairs: dict[tuple[int, int], float] = {}

    def obstacle(self) -> str:
        """Why the elimination is not run, empty where it is."""
        if self.multiplies:
            return "it multiplies two values"
        if not self.layers:
            return "the network is linear"
        unbounded = [node.path or node.origin.name for node, layer in self.layers.items() if _unbounded(layer)]
        if unbounded:
            return f"no bound of {unbounded[0]} is known"
        if self.widest > WIDEST:
            return f"a cut of {self.widest:,} coordinates is too wide (at most {WIDEST:,} are eliminated at once)"
        needed = self.cost + FIRST_STEPS * self.step
        if needed > self.effort:
            return f"it takes about {needed:.1f} s of a nominal core, the effort allows {self.effort:.1f}"
        return ""

    def bound(self, *, known: float, attained: float) -> WholeBound:
        """The bound of all outputs together. known: another bound; attained: an estimate from below, which says when
        nothing is left to gain."""
        start = perf_counter()
        obstacle = self.obstacle()
        if not obstacle and known <= attained * ATTAINED:
            obstacle = "the product of the pieces is attained"
        if obstacle:
            return WholeBound(skipped=obstacle, guarantee=self.guarantee)
        upper, reachable, skipped = math.inf, math.nan, ""
        spent, steps, tolerance, point = 0.0, FIRST_STEPS, FIRST_TOLERANCE, self._first()
        while True:
            spent += point.steps * self.step
            reachable = point.value
            if reachable >= known:
                skipped = f"multipliers per neuron cannot go below {reachable:.6g}"
                break
            for repair in REPAIRS:
                upper = min(upper, proved_bound(self.order, self.layers, point, repair=repair))
                spent += self.cost
                if upper <= NEAR * reachable or spent + self.cost > self.effort:
                    break
            done = upper <= CLOSE * reachable or steps >= MOST_STEPS
            steps, tolerance = min(2 * steps, MOST_STEPS), tolerance / 100
            if done or spent + steps * self.step + self.cost > self.effort:
                break
            point = search(
                self.order, self.layers, steps=steps, tolerance=tolerance, dtype=self.dtype, copies=COPIES, start=point
            )
        if not math.isfinite(upper) and not skipped:
            skipped = "no admissible multipliers were found"
        return WholeBound(upper, reachable, skipped, self.guarantee, perf_counter() - start)

    def pair(self, i: int, j: int) -> float:
        """A bound of the Lipschitz constant of output i minus output j, infinite where the network is not eliminated.

        The search goes on from the first multipliers of all outputs, so that it gives the same whether `bound` was run
        or its result remembered; what is found is kept.
        """
        place = (max(i, j), min(i, j))
        if place not in self.pairs:
            self.pairs[place] = self._pair(*place)
        return self.pairs[place]

    @property
    def pair_cost(self) -> float:
        """Nominal seconds of one pair."""
        return self.cost + PAIR_STEPS * self.step

    def _pair(self, i: int, j: int) -> float:
        if self.obstacle():
            return math.inf
        rows = torch.zeros(1, math.prod(self.order[-1].shape), dtype=torch.float64)
        rows[0, i], rows[0, j] = 1.0, -1.0
        point = search(
            self.order, self.layers, rows=rows, steps=PAIR_STEPS, dtype=self.dtype, copies=COPIES, start=self._first()
        )
        return proved_bound(self.order, self.layers, point, rows=rows)

    def _first(self) -> FixedPoint:
        """The multipliers of all outputs after the first steps."""
        if self._first_point is None:
            self._first_point = search(
                self.order, self.layers, steps=FIRST_STEPS, tolerance=FIRST_TOLERANCE, dtype=self.dtype, copies=COPIES
            )
        return self._first_point


def elimination_cost(order: Sequence[Node], layers: Mapping[Node, Increment]) -> tuple[float, int]:
    """Nominal seconds of one elimination and its proof, and the size of the largest matrix that is factorised.

    The cut is followed as `elimination.Front` does, with sizes in place of matrices.
    """
    rows = math.prod(order[-1].shape)
    live = {order[-1]: rows}
    operations, widest = 0.0, 0
    for node in reversed(order):
        if isinstance(node.piece, Source) or node not in live:
            continue
        size = live.pop(node)
        layer = layers.get(node)
        joined = {parent: math.prod(parent.shape) for parent in node.inputs if parent not in live}
        if isinstance(node.piece, Linear):
            operations += 2.0 * rows * size * node.piece.map.roundings
        if layer is not None:
            free = int((layer.upper > layer.lower).sum()) if isinstance(layer, SectorLayer) else size
            fresh = not live and isinstance(layer, SectorLayer) and not bool(layer.lower.any())
            live |= joined
            width = sum(live.values())
            products = 0.0 if fresh else 2.0 * free * rows * width
            operations += 2.0 * free * free * rows + free**3 / 3 + products + free * free * width
            rows, widest = (free if fresh else rows + free), max(widest, free)
        live |= joined
        width = sum(live.values())
        if rows > width:
            operations += 2.0 * rows * width * width + width**3 / 3
            rows, widest = width, max(widest, width)
    width = live.get(order[0], 0)
    side = min(rows, width)
    operations += 2.0 * side * side * max(rows, width) + side**3
    return operations / NOMINAL + PER_NODE * len(order), max(widest, side)


def _step_cost(order: Sequence[Node]) -> float:
    """Nominal seconds of a sweep of the search, forward and back."""
    maps = [node.piece.map for node in order if isinstance(node.piece, Linear)]
    products = sum(map_.out_size * map_.roundings for map_ in maps)
    return PER_NODE * len(order) + 3.0 * COPIES * products / NOMINAL


def _unbounded(layer: Increment) -> bool:
    return isinstance(layer, BoundedLayer) and not math.isfinite(layer.constant)


def _guarantee(order: Sequence[Node]) -> Guarantee:
    guarantee = Guarantee()
    for node in order:
        if isinstance(node.piece, Opaque):
            guarantee = guarantee & node.piece.bound.guarantee
    return guarantee
