"""Slopes of the secants of an activation that start at the image's own argument."""

from functools import singledispatch

import torch
from torch import Tensor

from robustres.certify.maps.activation import Activation as ScalarFunction
from robustres.certify.maps.activation import PiecewiseLinear


def slopes_from(
    function: ScalarFunction, low: Tensor, high: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """An interval of the slopes of all secants from the centre, known to lie in [low, high], to [lower, upper]."""
    lower, upper = torch.minimum(lower.to(torch.float64), low), torch.maximum(upper.to(torch.float64), high)
    return secants(function, lower, low, high, upper)


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
