"""The bound of the whole network at once, as a stage of `lipschitz`; when it is skipped and why; pairs of classes.

The product of the pieces' bounds assumes that every piece stretches most what the piece before it stretched most. The
elimination of the layers does not (`certify.blocks.elimination`). It requires a factorisation as large as the widest
layer, so its cost is estimated first, in seconds of a nominal core; the same effort always gives the same bound.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter

import torch

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.blocks.increments import BoundedLayer, Increment, increments
from robustres.certify.blocks.joint_search import image_value
from robustres.certify.blocks.network_forms import REPAIRS, Form, form_within, proof_within
from robustres.certify.blocks.torus_network import NotLaidError
from robustres.certify.graph.image_output import image_behind
from robustres.certify.graph.network import Node, Product
from robustres.certify.maps.nonlinear import Opaque
from robustres.certify.proof.bound import Guarantee

METHOD = "layers eliminated"
MOST_STEPS = 1600
FIRST_TOLERANCE = 3e-5
ATTAINED = 1 + 1e-3  # ratio of bound to estimate below which no better bound is sought
PAIR_STEPS, PAIR_TOLERANCE = 60, 3e-5
PAIR_ROUNDS, PAIR_CLOSE = 3, 1.03  # the search goes on while the proved bound exceeds the reachable one by more
PAIR_PROOFS = 1.5  # what choosing the repairs on tori and a proof may cost at least, in proofs
PAIR_GAIN = 1.01  # ratio of the known bound of a pair to the reachable one from which a proof pays


@dataclass(frozen=True)
class WholeBound:
    """upper: proved bound of the l2 Lipschitz constant of all outputs together, infinite if none was found.

    reachable: an estimate of the smallest bound that multipliers of this kind can prove, NaN if it was not computed.
    shares: the unit that has its own multiplier, "neuron" or "channel". skipped: the reason why there is no bound, or
    empty. guarantee: the guarantee of `upper`.
    """

    upper: float = math.inf
    reachable: float = math.nan
    skipped: str = ""
    guarantee: Guarantee = field(default_factory=Guarantee)
    seconds: float = 0.0
    shares: str = "neuron"


class WholeNetwork:
    """The elimination of a simplified network within an effort in nominal seconds.

    pairs: bounds of the differences of two outputs, as far as they were requested.
    """

    def __init__(self, output: Node, *, effort: float) -> None:
        self.output, self.effort = output, effort
        self.guarantee = _guarantee(output.ordered())
        self._first_point: FixedPoint | None = None
        self.pairs: dict[tuple[int, int], float] = {}

    @cached_property
    def _hindrance(self) -> str:
        """The reason why the network is not eliminated in any form, or empty."""
        order = self.output.ordered()
        if any(isinstance(node.piece, Product) for node in order):
            return "it multiplies two values"
        layers = increments(order)
        if not layers:
            return "the network is linear"
        unbounded = [node.path or node.origin.name for node, layer in layers.items() if _unbounded(layer)]
        return f"no bound of {unbounded[0]} is known" if unbounded else ""

    @cached_property
    def _choice(self) -> tuple[Form | None, str]:
        """The form in which the network is eliminated, or the reason why there is none."""
        if self._hindrance:
            return None, self._hindrance
        return form_within(self.output, self.effort)

    def obstacle(self) -> str:
        """The reason why the elimination is not run, or empty."""
        form, said = self._choice
        return said if form is None else ""

    @property
    def form(self) -> Form:
        """The form, if there is no obstacle."""
        form, said = self._choice
        assert form is not None, said
        return form

    def bound(self, *, known: float, attained: float) -> WholeBound:
        """The bound of all outputs together. known: another bound. attained: a lower estimate, for stopping early."""
        start = perf_counter()
        obstacle = self.obstacle()
        by_channel = bool(obstacle) or self.form.torus is not None
        image = image_behind(self.output) if by_channel and not self._hindrance else None
        if (not obstacle or image is not None) and known <= attained * ATTAINED:
            return WholeBound(skipped="the product of the pieces is attained", guarantee=self.guarantee)
        if image is not None:
            return self._of_image(image, known, start)
        if obstacle:
            return WholeBound(skipped=obstacle, guarantee=self.guarantee)
        form = self.form
        upper, reachable, skipped = math.inf, math.nan, ""
        spent, steps, tolerance, point = 0.0, form.first, FIRST_TOLERANCE, self._first()
        while True:
            spent += point.steps * form.step
            reachable = point.value
            if reachable >= known:
                skipped = f"multipliers per {form.shares} cannot go below {reachable:.6g}"
                break
            found, took = proof_within(form, point, self.effort - spent, repairs=REPAIRS)
            upper, spent = min(upper, found), spent + took
            if steps >= MOST_STEPS:
                break
            steps, tolerance = min(2 * steps, MOST_STEPS), tolerance / 100
            next_round = steps * form.step + form.cost
            worth = form.worth * next_round / self.effort
            if upper <= (1 + worth) * reachable or spent + next_round > self.effort:
                break
            point = form.search(steps=steps, tolerance=tolerance, start=point)
        if not math.isfinite(upper) and not skipped:
            skipped = "no admissible multipliers were found"
        return WholeBound(upper, reachable, skipped, self.guarantee, perf_counter() - start, form.shares)

    def _of_image(self, image: Node, known: float, start: float) -> WholeBound:
        """The bound if the output is an image: all frequencies of a torus matter, not only sums of channels."""
        said = f"{self.obstacle()}; " if self.obstacle() else ""
        try:
            upper, reachable = image_value(image, effort=self.effort, limit=known)
        except NotLaidError as reason:
            return WholeBound(skipped=f"{said}as images: {reason}", guarantee=self.guarantee)
        skipped = "" if math.isfinite(upper) else f"{said}as images, nothing below {known:.6g} was found"
        return WholeBound(upper, reachable, skipped, self.guarantee, perf_counter() - start, "channel")

    def pair(self, i: int, j: int, *, known: float = math.inf) -> float:
        """A bound of the Lipschitz constant of output i minus output j, infinite if the network is not eliminated.

        The search continues from the first multipliers of all outputs, so the result does not depend on whether `bound`
        was run or its result was cached. Results are cached.
        known: another bound of it, which is returned without a proof if multipliers can hardly improve it.
        """
        place = (max(i, j), min(i, j))
        if place not in self.pairs:
            found = self._pair(*place, known)
            if found == known:
                return known
            self.pairs[place] = found
        return self.pairs[place]

    @property
    def pair_cost(self) -> float:
        """Nominal seconds of one pair whose first search suffices."""
        return self.form.cost + PAIR_STEPS * self.form.step

    def _pair(self, i: int, j: int, known: float) -> float:
        if self.obstacle():
            return math.inf
        rows = torch.zeros(1, math.prod(self.output.shape), dtype=torch.float64)
        rows[0, i], rows[0, j] = 1.0, -1.0
        point, upper = self._first(), math.inf
        for doubled in range(PAIR_ROUNDS):
            steps, tolerance = PAIR_STEPS << doubled, PAIR_TOLERANCE / 10**doubled
            point = self.form.search(rows=rows, steps=steps, tolerance=tolerance, start=point)
            if point.value * PAIR_GAIN > known:
                return known
            effort = max(steps * self.form.step, PAIR_PROOFS * self.form.cost)  # more repairs if they are cheap
            upper = min(upper, proof_within(self.form, point, effort, rows=rows, repairs=REPAIRS)[0])
            if upper <= PAIR_CLOSE * point.value:
                break
        return upper

    def _first(self) -> FixedPoint:
        """The multipliers of all outputs after the first steps."""
        if self._first_point is None:
            self._first_point = self.form.search(steps=self.form.first, tolerance=FIRST_TOLERANCE)
        return self._first_point


def _unbounded(layer: Increment) -> bool:
    return isinstance(layer, BoundedLayer) and not math.isfinite(layer.constant)


def _guarantee(order: Sequence[Node]) -> Guarantee:
    guarantee = Guarantee()
    for node in order:
        if isinstance(node.piece, Opaque):
            guarantee = guarantee & node.piece.bound.guarantee
    return guarantee
