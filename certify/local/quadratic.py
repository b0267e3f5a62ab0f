"""Quadratic certificates around one image: how far the network's answers can move, by sectors from the centre.

Boxes around every neuron are what loosens linear bounds in l2. Here the ball stays a ball: with z the change of a
neuron's argument from the image's own z0, its answer changes by s z with s the slope of a secant that starts at z0.
That slope lies in an interval which closes as the ball shrinks, and one elimination of all layers with these intervals
bounds every change (`robustres.certify.blocks.network_bound`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor, fx

from robustres.certify.blocks.elimination import Repair
from robustres.certify.blocks.fixed_point import FixedPoint, search
from robustres.certify.blocks.increments import increments
from robustres.certify.blocks.network_bound import proved_bound
from robustres.certify.graph.network import Elementwise, Node
from robustres.certify.local.intermediate import Bounds
from robustres.certify.local.program import Program
from robustres.certify.local.sets import Region
from robustres.certify.local.steps import Activation
from robustres.certify.maps.activation import Activation as ScalarFunction
from robustres.certify.maps.activation import PiecewiseLinear
from robustres.numerics import rounded_up

COPIES, STEPS = 16, 120
# A search ends about a thousandth above the best multipliers; a hundredth of that buys a proof in a third of the time.
REPAIR = Repair(loss=1e-5, spare=1e-6, main=1e-4)

Sectors = Mapping[Node, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Quadratic:
    """What a search found for the difference of two logits: multipliers that the proof may use."""

    point: FixedPoint


def sectors(program: Program, bounds: Bounds, centre: Bounds) -> Sectors:
    """Intervals of the slopes of all secants from the image, for every activation of the simplified network.

    bounds: proved on the region, one sample. centre: proved at the image itself, so as wide as rounding makes it.
    """
    places: dict[fx.Node, int] = {
        step.origin: place
        for place, step in enumerate(program.steps)
        if isinstance(step, Activation) and step.origin is not None
    }
    found: dict[Node, tuple[Tensor, Tensor]] = {}
    for node in program.order:
        if not isinstance(node.piece, Elementwise) or node.origin not in places:
            continue
        step = program.steps[places[node.origin]]
        assert isinstance(step, Activation)
        low, high = (side[step.source][0].to(torch.float64) for side in (centre.lower, centre.upper))
        lower = torch.minimum(bounds.lower[step.source][0].to(torch.float64), low)
        upper = torch.maximum(bounds.upper[step.source][0].to(torch.float64), high)
        flat, steep = secants(step.function, lower, low, high, upper)
        found[node] = (flat.flatten(), steep.flatten())
    return found


@singledispatch
def secants(function: ScalarFunction, lower: Tensor, low: Tensor, high: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """An interval of the slopes between any point of [low, high] and any of [lower, upper], which holds it."""
    return function.slopes_on(lower, upper)


@secants.register
def _(function: PiecewiseLinear, lower: Tensor, low: Tensor, high: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Of a convex function the slope of a secant rises with both of its ends, so the extremes lie at the outermost."""
    flat, steep = function.slopes_on(lower, upper)
    if len(function.pieces) != 2:
        return flat, steep
    left, right = (torch.as_tensor(piece).to(lower) for piece in function.pieces)
    convex = left <= right
    ends = [_slope(function, low, lower), _slope(function, high, upper)]
    slack = _slope_slack(function, low, lower), _slope_slack(function, high, upper)
    first = torch.where(convex, ends[0] - slack[0], flat)
    last = torch.where(convex, ends[1] + slack[1], steep)
    # A slope is never outside of what the whole interval allows; ends that meet the centre say nothing by themselves.
    first = torch.where(low > lower, torch.maximum(first, flat), flat)
    last = torch.where(upper > high, torch.minimum(last, steep), steep)
    return first, torch.maximum(first, last)


def _slope(function: ScalarFunction, start: Tensor, end: Tensor) -> Tensor:
    width = end - start
    return (function(end) - function(start)) / torch.where(width == 0, torch.ones_like(width), width)


def _slope_slack(function: PiecewiseLinear, start: Tensor, end: Tensor) -> Tensor:
    """At or above the rounding of `_slope`."""
    steep = max(abs(slope) for slope in function.slopes)
    size = function(start).abs() + function(end).abs() + steep * (start.abs() + end.abs())
    return 2.0**-48 * size / (end - start).abs().clamp_min(1e-290)


def half_widths(region: Region) -> Tensor:
    """(n,) at or above how far each pixel can move from the centre, of a region of one sample."""
    lower, upper = region.bounds
    return torch.maximum(region.centre - lower, upper - region.centre)[0].flatten() * (1 + 2.0**-50)


def searched(
    program: Program,
    slopes: Sectors,
    row: Tensor,
    region: Region,
    *,
    start: Quadratic | None = None,
    steps: int = STEPS,
) -> Quadratic:
    """Multipliers for one row (1, classes) of the logits: an estimate of the largest change is `point.value`."""
    box = half_widths(region) if region.norm == "linf" else None
    layers = increments(program.order, slopes=slopes)
    begin = None if start is None else start.point
    return Quadratic(
        search(program.order, layers, rows=row, box=box, copies=COPIES, steps=steps, dtype=torch.float32, start=begin)
    )


def proved_change(program: Program, slopes: Sectors, row: Tensor, region: Region, found: Quadratic) -> float:
    """At or above |row . change of the logits| on the region, whatever the multipliers; infinite where none hold.

    slopes: proved in float64.
    """
    if region.norm == "l1":
        return math.inf
    box = half_widths(region) if region.norm == "linf" else None
    bound = proved_bound(
        program.order, increments(program.order, slopes=slopes), found.point, rows=row, box=box, repair=REPAIR
    )
    return bound if box is not None else rounded_up(bound * float(region.eps[0]), 1)
