"""Choosing the multipliers T of the joint bound: starting points, then gradient descent on log T; and the proof.

Nothing here needs to be right for the bound to be right: whatever T comes out is proved afterwards at every frequency.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robustres.certify.batched_norm import largest_norm
from robustres.certify.incremental_form import EXACT_SIDE, IncrementalForm, gain, gain_slope, proved
from robustres.numerics import gamma, rounded_up

ACTIVE = 24  # frequencies that the descent looks at; refreshed as others become the largest
MOST_STEPS = 150
MARGINS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
COARSE_MARGINS = (1e-5, 1e-4, 1e-3)
GROWTHS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
STEP_OVERHEAD = 1.5e-3  # nominal seconds of a step, however small the matrices
SCAN_ABOVE_MINIMUM = (1e-8, 1e-6, 1e-3, 0.03, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
COARSE_SCAN = (1e-6, 0.1, 0.3, 0.7, 1.5, 4.0)


class FormSource(Protocol):
    """A block's incremental form: all of it in chunks, or some of its frequencies.

    cost: nominal seconds that the gain of one frequency takes.
    """

    frequencies: Tensor
    cost: float

    def form(self, frequencies: Tensor) -> IncrementalForm: ...

    def chunks(self) -> Iterator[IncrementalForm]: ...


@dataclass(frozen=True)
class Scaling:
    """Multipliers (one per tie), the largest gain lambda seen with them, and the gains that it is the largest of."""

    values: Tensor
    value: float
    gains: Tensor


def evaluate(source: FormSource, values: Tensor) -> Scaling:
    """The gain at every frequency."""
    with torch.no_grad():
        gains = torch.cat([gain(form, values) for form in source.chunks()])
    value = float(gains.max())
    return Scaling(values, math.inf if math.isnan(value) else value, gains)


def starting_points(form: IncrementalForm, excesses: Sequence[float] = SCAN_ABOVE_MINIMUM) -> list[Tensor]:
    """Shapes of T, each with its multiples above the smallest admissible one: equal multipliers, the row sums of
    |V^H V|, the norms of V's columns over W's rows, and the T that cancels B (it finds CPL and SLL blocks)."""
    ties = int(form.tie.max()) + 1
    gram = (form.c_hidden.mH @ form.c_hidden).abs().amax(0)
    columns = form.c_hidden.abs().square().sum((0, 1))
    rows = form.z_input.abs().square().sum((0, 2))
    crossing = form.c_hidden.mH @ form.c_input
    cancelling = -_per_tie((crossing.conj() * form.z_input).real.sum((0, 2)), form.tie, ties) / _per_tie(
        rows, form.tie, ties
    ).clamp_min(1e-300)
    shapes = [torch.ones(ties, dtype=torch.float64, device=gram.device), _per_tie(gram.sum(1), form.tie, ties)]
    shapes.append((_per_tie(columns, form.tie, ties) / _per_tie(rows, form.tie, ties).clamp_min(1e-300)).sqrt())
    if bool((cancelling > 0).all()):
        shapes.append(cancelling)
    balance = _balance(form)
    starts = []
    for shape in shapes:
        largest = float(shape.max())
        if largest > 0 and math.isfinite(largest):
            shape = shape.clamp_min(1e-6 * largest)
            least = _least_multiple(form, shape)
            step = max(least, balance / float(shape.mean()))
            starts += [shape * (least + step * excess) for excess in excesses]
    return starts


def loop_transformation(source: FormSource) -> float:
    """sigma(c_input + c_hidden z_input / 2) + sigma(c_hidden) sigma(z_input) / 2 over all frequencies, proved.

    For one hidden layer: its slopes lie in [0, 1], so it is half the identity plus half a map of slopes in [-1, 1].
    """
    middle = outer = inner = 0.0
    slack = 0.0
    with torch.no_grad():
        for form in source.chunks():
            c_input, c_hidden, z_input = (float(part.sum()) for part in form.absolute[:3])
            slack = gamma(form.roundings) * (c_input + 2 * c_hidden * z_input + c_hidden + z_input + 1)
            middle = largest_norm(form.c_input + 0.5 * (form.c_hidden @ form.z_input), at_least=middle)
            outer = largest_norm(form.c_hidden, at_least=outer)
            inner = largest_norm(form.z_input, at_least=inner)
    return rounded_up(middle + 0.5 * (outer + slack) * (inner + slack) + slack, 8)


def layered_starting_points(form: IncrementalForm, layer_of_tie: Tensor, norms: Sequence[float]) -> list[Tensor]:
    """For several hidden layers: one multiplier per layer, from the last to the first just large enough, times kappa.

    norms: of every layer but the first, the outer one last.
    """
    starts = []
    for kappa in (1.02, 1.1, 1.3, 1.7, 2.5, 4.0, 8.0):
        multipliers: list[float] = []
        demand = norms[-1] ** 2
        for norm in reversed((0.0, *norms[:-1])):
            multiplier = max(kappa * demand / 2, 1e-300)
            multipliers.insert(0, multiplier)
            demand = (multiplier * norm) ** 2 / max(2 * multiplier - demand, 1e-300)
        starts.append(torch.tensor(multipliers, dtype=torch.float64, device=form.tie.device)[layer_of_tie])
    return starts


def descend(source: FormSource, start: Scaling, *, effort: float, rate: float = 0.1) -> Scaling:
    """Adam on log T for a smooth maximum over the active frequencies; returns the best T seen at all frequencies.

    effort: nominal seconds, turned into a number of steps, so that the result does not depend on the machine's load.
    """
    active_count = max(2, min(ACTIVE, int(effort / (30 * source.cost))))
    refresh = 10 if len(source.frequencies) <= 20 * active_count else 25
    per_step = STEP_OVERHEAD + source.cost * (active_count + len(source.frequencies) / refresh)
    steps = min(MOST_STEPS, int(effort / per_step))
    best, log_values = start, start.values.log()
    mean, square = torch.zeros_like(log_values), torch.zeros_like(log_values)
    active = source.form(_most_critical(source, best.gains, active_count))
    for step in range(1, steps + 1):
        sharpness = 100 * 30 ** (step / steps)
        value, slope = gain_slope(active, log_values.exp(), sharpness=sharpness)
        if not (math.isfinite(value) and bool(torch.isfinite(slope).all())):
            log_values, rate = best.values.log(), rate / 2
            continue
        mean, square = 0.8 * mean + 0.2 * slope, 0.95 * square + 0.05 * slope.square()
        pace = rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        direction = (mean / (1 - 0.8**step)) / ((square / (1 - 0.95**step)).sqrt() + 1e-12 * value)
        log_values = log_values - pace * direction
        if step % refresh == 0 or step == steps:
            candidate = evaluate(source, log_values.exp())
            if candidate.value < best.value:
                best = candidate
            if math.isfinite(candidate.value):
                active = source.form(_most_critical(source, candidate.gains, active_count))
    return best


def prove(source: FormSource, scaling: Scaling, *, give_up_above: float = math.inf) -> float:
    """The smallest value sqrt(lambda (1 + margin)) that is proved at every frequency; infinite where none is.

    `scaling.value` may come from some frequencies only; it is raised where others need more. Where M is too close to
    singular for a proof in floating point, larger multipliers are tried.
    """
    best = math.inf
    value = scaling.value
    for growth in GROWTHS:
        values = scaling.values * (1 + growth)
        if growth:
            value = evaluate(source, values).value
        if not math.isfinite(value) or math.sqrt(max(value, 0.0)) > min(best, give_up_above):
            break
        held = _proved_value(source, values, value, give_up_above**2)
        best = min(best, rounded_up(math.sqrt(held), 4))
        if best <= (1 + 1e-5) * math.sqrt(value):
            break
    return best


def _proved_value(source: FormSource, values: Tensor, value: float, limit: float) -> float:
    """lambda, raised by the smallest margins that hold at every frequency; infinite where the margins are used up.

    What holds at one frequency with a smaller value holds with a larger one, so no frequency is looked at again.
    """
    exact = source.form(source.frequencies[:1]).c_input.shape[-1] <= EXACT_SIDE
    tried = MARGINS if exact else COARSE_MARGINS  # a large matrix's lambda is only known to a few digits
    margins = iter(tried)
    held = value * (1 + next(margins))
    with torch.no_grad():
        for form in source.chunks():
            while not proved(form, values, held):
                here = float(gain(form, values).max())
                if here > value:
                    value, margins = here, iter(tried)
                margin = next(margins, None)
                if margin is None or not value < limit:
                    return math.inf
                held = max(held, value * (1 + margin))
    return held


def _most_critical(source: FormSource, gains: Tensor, count: int) -> Tensor:
    return source.frequencies[gains.topk(min(count, len(gains))).indices]


def _per_tie(values: Tensor, tie: Tensor, ties: int) -> Tensor:
    return torch.zeros(ties, dtype=values.dtype, device=values.device).index_add_(0, tie, values)


def _least_multiple(form: IncrementalForm, shape: Tensor) -> float:
    """The factor above which 2 T - V^H V is positive definite for that shape of T."""
    root = shape[form.tie].rsqrt()
    return 0.5 * float(torch.linalg.matrix_norm(form.c_hidden * root, 2).max()) ** 2


def _balance(form: IncrementalForm) -> float:
    """|S| |V| / |W|: where the optimum lies when the branch is small beside the shortcut."""
    norms = [float(torch.linalg.matrix_norm(part, 2).max()) for part in (form.c_input, form.c_hidden, form.z_input)]
    return norms[0] * norms[1] / norms[2] if norms[2] > 0 else 0.0
