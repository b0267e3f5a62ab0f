"""Quadratic certificates around one image: how far the network's answers can move, by sectors from the centre.

Boxes around every neuron are what loosens linear bounds in l2. Here the ball stays a ball: with z the change of a
neuron's argument from the image's own z0, its answer changes by s z with s the slope of a secant that starts at z0.
That slope lies in an interval which closes as the ball shrinks, and one elimination of all layers with these intervals
bounds every change (`robustres.certify.blocks.network_bound`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import singledispatch

import torch
from torch import Tensor, fx

from robustres.certify.blocks.fixed_point import FixedPoint, search
from robustres.certify.blocks.front import Repair
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
    left, right = (torch.as_tensor(piece, dtype=lower.dtype, device=lower.device) for piece in function.pieces)
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
    rows: Tensor,
    region: Region,
    *,
    start: FixedPoint | None = None,
    steps: int = STEPS,
) -> FixedPoint:
    """Multipliers for rows (R, outputs) together: `value` estimates the largest root of the sum of their squares.

    In l2 that is of changes of length 1.
    """
    box = half_widths(region) if region.norm == "linf" else None
    layers = increments(program.order, slopes=slopes)
    return search(
        program.order, layers, rows=rows, box=box, copies=COPIES, steps=steps, dtype=torch.float32, start=start
    )


def added(points: Sequence[FixedPoint], scales: Sequence[float]) -> FixedPoint:
    """One point for several rows, each times its scale: inequalities with these multipliers add up, so the square of
    its value is at most the sum of theirs."""
    first = points[0]
    squares = [scale * scale for scale in scales]
    shares = list(zip(squares, points, strict=True))
    return replace(
        first,
        value=math.sqrt(sum(square * point.value**2 for square, point in shares)),
        multipliers={
            node: torch.stack([square * point.multipliers[node] for square, point in shares]).sum(0)
            for node in first.multipliers
        },
        sizes={node: torch.stack([point.sizes[node] for point in points]).amax(0) for node in first.sizes},
        weights=None
        if first.weights is None
        else torch.stack([square * point.weights for square, point in shares if point.weights is not None]).sum(0),
    )


def proved_change(program: Program, slopes: Sectors, rows: Tensor, region: Region, found: FixedPoint) -> float:
    """At or above |rows . change of the logits| on the region, whatever the multipliers; infinite where none hold.

    slopes: proved in float64.
    """
    if region.norm == "l1":
        return math.inf
    box = half_widths(region) if region.norm == "linf" else None
    if box is not None and found.weights is None:
        return math.inf
    layers = increments(program.order, slopes=slopes)
    bound = proved_bound(program.order, layers, found, rows=rows, box=box, repair=REPAIR)
    return bound if box is not None else rounded_up(bound * float(region.eps[0]), 1)
