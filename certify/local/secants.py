"""Slopes of the secants of an activation that start at its argument at the image."""

from functools import singledispatch

import torch
from torch import Tensor

from robustres.certify.maps.activation import Activation as ScalarFunction
from robustres.certify.maps.activation import PiecewiseLinear


def slopes_from(
    function: ScalarFunction, low: Tensor, high: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """An interval with the slopes of all secants from the centre, in [low, high], to points of [lower, upper]."""
    lower, upper = torch.minimum(lower.to(torch.float64), low), torch.maximum(upper.to(torch.float64), high)
    return secants(function, lower, low, high, upper)


@singledispatch
def secants(function: ScalarFunction, lower: Tensor, low: Tensor, high: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """An interval with the slopes between points of [low, high] and of [lower, upper], which contains [low, high]."""
    return function.slopes_on(lower, upper)


@secants.register
def _(function: PiecewiseLinear, lower: Tensor, low: Tensor, high: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The secant slopes of a convex function increase with both ends, so the outermost ends give the extremes."""
    flat, steep = function.slopes_on(lower, upper)
    if len(function.pieces) != 2:
        return flat, steep
    left, right = (torch.as_tensor(piece, dtype=lower.dtype, device=lower.device) for piece in function.pieces)
    convex = left <= right
    ends = [_slope(function, low, lower), _slope(function, high, upper)]
    slack = _slope_slack(function, low, lower), _slope_slack(function, high, upper)
    first = torch.where(convex, ends[0] - slack[0], flat)
    last = torch.where(convex, ends[1] + slack[1], steep)
    # A slope always lies within the range for the whole interval; ends that coincide with the centre have no secant.
    first = torch.where(low > lower, torch.maximum(first, flat), flat)
    last = torch.where(upper > high, torch.minimum(last, steep), steep)
    return first, torch.maximum(first, last)


def tangent_at(function: ScalarFunction, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor] | None:
    """Slopes of tangents at the centre, in [low, high], and on which side of them a function of two pieces lies.

    1 above, -1 below, 0 where that is not certain or the function linear. None for other functions.
    """
    if not isinstance(function, PiecewiseLinear) or len(function.pieces) != 2:
        return None
    kink, left, right = (torch.as_tensor(one).to(low) for one in (*function.kinks, *function.pieces))
    slope = torch.where(low >= kink, right, left).expand_as(low)
    known = (low >= kink) | (high <= kink)
    return slope, torch.where(known, (right - left).sign(), 0.0)


def _slope(function: ScalarFunction, start: Tensor, end: Tensor) -> Tensor:
    width = end - start
    return (function(end) - function(start)) / torch.where(width == 0, torch.ones_like(width), width)


def _slope_slack(function: PiecewiseLinear, start: Tensor, end: Tensor) -> Tensor:
    """At or above the rounding of `_slope`."""
    steep = max(abs(slope) for slope in function.slopes)
    size = function(start).abs() + function(end).abs() + steep * (start.abs() + end.abs())
    return 2.0**-48 * size / (end - start).abs().clamp_min(1e-290)
