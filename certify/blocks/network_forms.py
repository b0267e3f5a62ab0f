"""The forms in which a network can be eliminated, and the cost of each, known before anything is computed.

One matrix of rows with a multiplier for every neuron is the tightest form, and as large as the widest layer. On tori,
with a multiplier for every channel, a network of convolutions is block-diagonal in frequency.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustres.certify.blocks.cost import WIDEST, elimination_cost, step_cost, torus_cost
from robustres.certify.blocks.fixed_point import FixedPoint, search
from robustres.certify.blocks.front import Repair
from robustres.certify.blocks.increments import Increment, increments
from robustres.certify.blocks.network_bound import proved_bound
from robustres.certify.blocks.torus_bound import torus_bound
from robustres.certify.blocks.torus_network import NotLaidError, TorusNetwork, on_tori
from robustres.certify.graph.network import Node

COUPLED = (1024, 512, 256, 128, 64)  # the same at each frequency, in the order of the attempts
SINGLE_PRECISION = 3000  # number of neurons above which the search runs in float32
# Repairs of the multipliers, from the gentlest to those that deep chains require, tried until the bound is close to the
# reachable one. SURE nearly always succeeds and is used on tori when the effort does not allow a choice.
REPAIRS = (Repair(1e-6), Repair(1e-4), Repair(1e-2), Repair(5e-2, 1e-4), Repair(1e-3, 1e-2), Repair(1e-2, 1e-3))
SURE = Repair(5e-2, 1e-2)
NEAR = 1 + 5e-3
# On tori, each region has its own repair, chosen by trials at a few frequencies: their number, how many cost as much as
# a proof, and the effort, in proofs, from which the other repairs are tried first.
TRIALS, FEWEST_TRIALS, PER_PROOF, AMPLE = 16, 3, 12, 3.0
ENOUGH_TRIALS = 8  # for regions wider than others that the effort allows
COPIES, COPIES_SHARED = 16, 4  # copies of the input in the search, with a multiplier per neuron or per channel
FIRST_STEPS, FIRST_STEPS_SHARED = 200, 100  # of the search, the same


@dataclass(frozen=True, eq=False)
class Form:
    """A form of a network, and what it costs.

    order, layers: of the network as it is, or on tori (`torus`). cost: nominal seconds of an elimination and its proof.
    step: nominal seconds of one sweep of the search. obstacle: the reason why the network cannot be eliminated, or
    empty. shares: the unit that has its own multiplier. worth: the relative gain for which the whole effort pays, and a
    part of it for a smaller one; larger where the search converges to fewer digits. copies, dtype: of the search.
    first: steps of the first search, fewer on tori, where multipliers are refined region by region.
    """

    order: Sequence[Node]
    layers: Mapping[Node, Increment]
    cost: float
    step: float
    obstacle: str
    shares: Literal["neuron", "channel"] = "neuron"
    worth: float = 1e-5
    copies: int = COPIES
    dtype: torch.dtype = torch.float64
    first: int = FIRST_STEPS
    torus: TorusNetwork | None = None

    def search(
        self, *, steps: int, tolerance: float, rows: Tensor | None = None, start: FixedPoint | None = None
    ) -> FixedPoint:
        """Search for multipliers, starting from the result of another search if given."""
        return search(
            self.order, self.layers, rows=rows, steps=steps, tolerance=tolerance, dtype=self.dtype, copies=self.copies,
            start=start,
        )  # fmt: skip

    def prove(
        self, point: FixedPoint, *, rows: Tensor | None = None, repair: Repair | None = None, trials: int = 0
    ) -> float:
        """The bound that the multipliers prove. trials: on tori, the number of repairs tried for each region."""
        if self.torus is not None:
            return torus_bound(self.torus, point, rows=rows, repair=repair, trials=trials)
        return proved_bound(self.order, self.layers, point, rows=rows, repair=repair)


def plain_form(order: Sequence[Node]) -> Form:
    """The network as it is, with a multiplier for every neuron."""
    layers = increments(order)
    neurons = sum(math.prod(layer.shape) for layer in layers.values())
    cost, widest = elimination_cost(order, layers)
    wide = f"a cut of {widest:,} coordinates is too wide (at most {WIDEST:,} are eliminated at once)"
    dtype = torch.float32 if neurons > SINGLE_PRECISION else torch.float64
    return Form(order, layers, cost, step_cost(order, COPIES), wide if widest > WIDEST else "", dtype=dtype)


def torus_form(torus: TorusNetwork) -> Form:
    """The network on tori, with a multiplier for every channel."""
    cost, step = torus_cost(torus), step_cost(torus.order, COPIES_SHARED)
    obstacle = "" if math.isfinite(cost) else "the layers after the last image are too wide"
    return Form(
        torus.order, torus.layers, cost, step, obstacle, shares="channel", worth=1.2e-2, copies=COPIES_SHARED,
        dtype=torch.float32, first=FIRST_STEPS_SHARED, torus=torus,
    )  # fmt: skip


def proof_within(
    form: Form,
    point: FixedPoint,
    effort: float,
    *,
    rows: Tensor | None = None,
    repairs: Sequence[Repair],
    near: float = NEAR,
) -> tuple[float, float]:
    """The smallest bound that the multipliers prove with the repairs, which are tried until it is within a factor
    `near` of the value reached, and the nominal seconds used. At least one repair is tried regardless of the effort.
    On tori, the repair of each region is then chosen at a few frequencies, or at once if the effort is scarce."""
    upper, spent = math.inf, 0.0
    if form.torus is not None and effort < AMPLE * form.cost:
        repairs = (SURE,) if _trials(form, effort) < FEWEST_TRIALS else ()
    for repair in repairs:
        upper = min(upper, form.prove(point, rows=rows, repair=repair))
        spent += form.cost
        if upper <= near * point.value or spent + form.cost > effort:
            break
    trials = _trials(form, effort - spent)
    if trials >= FEWEST_TRIALS and upper > near * point.value:
        upper = min(upper, form.prove(point, rows=rows, repair=SURE, trials=trials))
        spent += form.cost * (1 + trials / PER_PROOF)
    return upper, spent


def _trials(form: Form, effort: float) -> int:
    """The number of repairs of each region on a torus that the effort allows to compare, beside one proof."""
    return 0 if form.torus is None else max(0, min(TRIALS, int(PER_PROOF * (effort / form.cost - 1))))


def form_within(output: Node, effort: float) -> tuple[Form | None, str]:
    """The first form, or None, for which the effort allows the first search and one proof, and the reason
    why the tightest form is not used. On tori, narrower regions for which enough repairs can be compared come before
    wider ones for which they cannot."""
    plain = plain_form(output.ordered())
    said = plain.obstacle or _unaffordable(plain, effort)
    if not said:
        return plain, ""
    untried: Form | None = None  # the first form for which too few repairs of each region can be compared
    for widest in COUPLED:
        try:
            form = torus_form(on_tori(output, widest=widest))
        except NotLaidError as reason:
            if untried is None:
                return None, f"{said}; not laid on tori: {reason}"
            break
        on_torus = form.obstacle or _unaffordable(form, effort)
        if not on_torus and _trials(form, effort - form.first * form.step) >= ENOUGH_TRIALS:
            return form, said
        if not on_torus and untried is None:
            untried = form
    return (untried, said) if untried is not None else (None, f"{said}; on tori, {on_torus}")


def _unaffordable(form: Form, effort: float) -> str:
    needed = form.cost + form.first * form.step
    if needed <= effort:
        return ""
    return f"it takes about {needed:.1f} s of a nominal core, the effort allows {effort:.1f}"
