"""Choosing the multipliers T of the joint bound by gradient descent on log T; and the proof.

Nothing here needs to be right for the bound to be right: whatever T comes out is proved afterwards at every frequency.
"""

import math

import torch
from torch import Tensor

from robustres.certify.blocks.multiplier_form import FormSource, Scaling
from robustres.numerics import rounded_up

ACTIVE = 24  # frequencies that the descent looks at; refreshed as others become the largest
MOST_STEPS = 150
GROWTHS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
STEP_OVERHEAD = 1.5e-3  # nominal seconds of a step, however small the matrices
TOO_FAR = 2.0  # times the best gain: where a step is taken back


def descend(source: FormSource, start: Scaling, *, effort: float, rate: float = 0.1) -> Scaling:
    """Adam on log T for a smooth maximum over the active frequencies; returns the best T seen at all frequencies.

    effort: nominal seconds, turned into a number of steps, so that the result does not depend on the machine's load.
    """
    active_count = max(2, min(ACTIVE, int(effort / (30 * source.cost))))
    refresh = 10 if len(source.frequencies) <= 20 * active_count else 25
    per_step = STEP_OVERHEAD + source.overhead + source.cost * active_count + source.sweep / refresh
    steps = min(MOST_STEPS, int(effort / per_step))
    best, log_values = start, start.values.log()
    mean, square = torch.zeros_like(log_values), torch.zeros_like(log_values)
    active, near = _most_critical(source, best.ranks, active_count), best.value
    for step in range(1, steps + 1):
        sharpness = 100 * 30 ** (step / steps)
        value, slope = source.gain_slope(log_values.exp(), active, near=near, sharpness=sharpness)
        if not (value < TOO_FAR * best.value and bool(torch.isfinite(slope).all())):
            log_values, near, rate = best.values.log(), best.value, rate / 2
            continue
        near = value
        mean, square = 0.8 * mean + 0.2 * slope, 0.95 * square + 0.05 * slope.square()
        pace = rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        direction = (mean / (1 - 0.8**step)) / ((square / (1 - 0.95**step)).sqrt() + 1e-12 * value)
        log_values = log_values - pace * direction
        if step % refresh == 0 or step == steps:
            candidate = source.evaluate(log_values.exp(), value)
            if candidate.value < best.value:
                best = candidate
            if math.isfinite(candidate.value):
                active, near = _most_critical(source, candidate.ranks, active_count), candidate.value
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
            value = source.evaluate(values, value).value
        if not math.isfinite(value) or math.sqrt(max(value, 0.0)) > min(best, give_up_above):
            break
        held = source.proved_value(values, value, give_up_above**2)
        best = min(best, rounded_up(math.sqrt(held), 4))
        if best <= (1 + 1e-5) * math.sqrt(value):
            break
    return best


def _most_critical(source: FormSource, ranks: Tensor, count: int) -> Tensor:
    return source.frequencies[ranks.topk(min(count, len(ranks))).indices]
