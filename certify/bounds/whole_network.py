"""The whole network bounded at once, as a stage of `lipschitz`: what it skips and why; pairs of classes.

The product of the pieces' bounds assumes that every piece stretches what the piece before it stretched most. The
elimination of the layers does not (`certify.blocks.elimination`). It needs a factorisation as large as the widest
layer, so its cost is counted first, in seconds of a nominal core: the same effort gives the same bound.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter

import torch

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.blocks.increments import BoundedLayer, Increment, increments
from robustres.certify.blocks.network_forms import REPAIRS, SURE, Form, form_within, proof_within
from robustres.certify.graph.network import Node, Product
from robustres.certify.maps.nonlinear import Opaque
from robustres.certify.proof.bound import Guarantee

METHOD = "layers eliminated"
FIRST_STEPS, MOST_STEPS = 200, 1600
FIRST_TOLERANCE = 3e-5
CLOSE = 1 + 1e-5  # proved over reachable: near enough
ATTAINED = 1 + 1e-3  # bound over estimate: no better bound is worth looking for
PAIR_STEPS, PAIR_TOLERANCE = 60, 3e-5


@dataclass(frozen=True)
class WholeBound:
    """upper: of the l2 Lipschitz constant of all outputs together, proved; infinite where it was not found.

    reachable: an estimate of the smallest bound that multipliers of this kind can prove; NaN where it was not sought.
    shares: what has a multiplier of its own, a "neuron" or a "channel". skipped: why there is no bound, empty where
    there is one. guarantee: of `upper`.
    """

    upper: float = math.inf
    reachable: float = math.nan
    skipped: str = ""
    guarantee: Guarantee = field(default_factory=Guarantee)
    seconds: float = 0.0
    shares: str = "neuron"


class WholeNetwork:
    """The elimination of one simplified network, within an effort in nominal seconds.

    pairs: bounds of the differences of two outputs, as far as they were asked for.
    """

    def __init__(self, output: Node, *, effort: float) -> None:
        self.output, self.effort = output, effort
        self.guarantee = _guarantee(output.ordered())
        self._first_point: FixedPoint | None = None
        self.pairs: dict[tuple[int, int], float] = {}

    @cached_property
    def _choice(self) -> tuple[Form | None, str]:
        """The form in which it is eliminated; without one, why."""
        order = self.output.ordered()
        if any(isinstance(node.piece, Product) for node in order):
            return None, "it multiplies two values"
        layers = increments(order)
        if not layers:
            return None, "the network is linear"
        unbounded = [node.path or node.origin.name for node, layer in layers.items() if _unbounded(layer)]
        if unbounded:
            return None, f"no bound of {unbounded[0]} is known"
        return form_within(self.output, self.effort, steps=FIRST_STEPS)

    def obstacle(self) -> str:
        """Why the elimination is not run, empty where it is."""
        form, said = self._choice
        return said if form is None else ""

    @property
    def form(self) -> Form:
        """The form, where nothing stands in the way."""
        form, said = self._choice
        assert form is not None, said
        return form

    def bound(self, *, known: float, attained: float) -> WholeBound:
        """The bound of all outputs together. known: another bound; attained: an estimate from below, which says when
        nothing is left to gain."""
        start = perf_counter()
        obstacle = self.obstacle()
        if not obstacle and known <= attained * ATTAINED:
            obstacle = "the product of the pieces is attained"
        if obstacle:
            return WholeBound(skipped=obstacle, guarantee=self.guarantee)
        form = self.form
        upper, reachable, skipped = math.inf, math.nan, ""
        spent, steps, tolerance, point = 0.0, FIRST_STEPS, FIRST_TOLERANCE, self._first()
        while True:
            spent += point.steps * form.step
            reachable = point.value
            if reachable >= known:
                skipped = f"multipliers per {form.shares} cannot go below {reachable:.6g}"
                break
            scarce = form.shares == "channel" and spent + 3 * form.cost > self.effort
            found, took = proof_within(form, point, self.effort - spent, repairs=(SURE,) if scarce else REPAIRS)
            upper, spent = min(upper, found), spent + took
            done = upper <= CLOSE * reachable or steps >= MOST_STEPS
            steps, tolerance = min(2 * steps, MOST_STEPS), tolerance / 100
            if done or spent + steps * form.step + form.cost > self.effort:
                break
            point = form.search(steps=steps, tolerance=tolerance, start=point)
        if not math.isfinite(upper) and not skipped:
            skipped = "no admissible multipliers were found"
        return WholeBound(upper, reachable, skipped, self.guarantee, perf_counter() - start, form.shares)

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
        return self.form.cost + PAIR_STEPS * self.form.step

    def _pair(self, i: int, j: int) -> float:
        if self.obstacle():
            return math.inf
        rows = torch.zeros(1, math.prod(self.output.shape), dtype=torch.float64)
        rows[0, i], rows[0, j] = 1.0, -1.0
        point = self.form.search(rows=rows, steps=PAIR_STEPS, tolerance=PAIR_TOLERANCE, start=self._first())
        return self.form.prove(point, rows=rows)

    def _first(self) -> FixedPoint:
        """The multipliers of all outputs after the first steps."""
        if self._first_point is None:
            self._first_point = self.form.search(steps=FIRST_STEPS, tolerance=FIRST_TOLERANCE)
        return self._first_point


def _unbounded(layer: Increment) -> bool:
    return isinstance(layer, BoundedLayer) and not math.isfinite(layer.constant)


def _guarantee(order: Sequence[Node]) -> Guarantee:
    guarantee = Guarantee()
    for node in order:
        if isinstance(node.piece, Opaque):
            guarantee = guarantee & node.piece.bound.guarantee
    return guarantee
