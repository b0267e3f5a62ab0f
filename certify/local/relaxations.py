"""Lines below and above an activation between proven bounds of its argument.

The slope of a line may be any number; its offset is what is proved. For a function of several linear pieces the
extremes of phi(z) - slope z lie at the ends of the interval and at the kinks between. For a smooth one the interval is
cut into cells, and within a cell the values at its ends and an interval of its slopes bound the rest. Among some slopes
the one whose line is best at the middle of the interval is taken, which leaves the smallest area. For a convex or
concave one that is the tangent at the middle, on one side; on the other side the extremes lie at the ends.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import singledispatch

import torch
from torch import Tensor

from robustres.certify.local.planes import Planes, planes
from robustres.certify.local.steps import Activation, Product
from robustres.certify.maps.activation import TINY, Curve, PiecewiseLinear, Smooth, broadcast_size
from robustres.certify.maps.activation import Activation as ScalarFunction
from robustres.certify.maps.curves import Square
from robustres.certify.maps.per_coordinate import PerCoordinate
from robustres.certify.maps.smooth import Cos, Sin
from robustres.certify.maps.written import Written
from robustres.certify.proof.rounding import FUNCTION_UNITS
from robustres.numerics import UNIT_ROUNDOFF

CELLS = 24
# Roundings of what a line's offset is computed from, with room: relative to the sizes of all terms.
UNITS = 32 * UNIT_ROUNDOFF[torch.float64]


class UnboundedError(Exception):
    """A step has no finite bounds on the region, so nothing is proved there: a divisor may be 0, a square overflow."""


@dataclass(frozen=True, eq=False)
class Lines:
    """lower_slope z + lower_offset <= phi(z) <= upper_slope z + upper_offset for all z between the bounds; (N, *shape).

    flattest, steepest: every slope between them is as valid below as the one given, with the same offset; equal to it
    where it is the only one. loose: where tighter bounds of z would bring the lines together. low, high: of phi(z).
    """

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor
    flattest: Tensor
    steepest: Tensor
    loose: Tensor
    low: Tensor
    high: Tensor

    def to(self, dtype: torch.dtype) -> "Lines":
        """In another precision, for a search."""
        parts = (getattr(self, field.name) for field in fields(self))
        return Lines(*(part if part.dtype == torch.bool else part.to(dtype) for part in parts))


Relaxation = Lines | Planes


def relaxation(step: Activation | Product, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> Relaxation:
    """What holds for a step between bounds of all steps before it, (N, *shape) each."""
    if isinstance(step, Activation):
        return lines(step, lower[step.source], upper[step.source])
    found = planes(*((lower[source], upper[source]) for source in step.sources))
    _require_finite(found.lower_offset, found.upper_offset)
    return found


def lines(step: Activation, lower: Tensor, upper: Tensor) -> Lines:
    """The lines of an activation for arguments in [lower, upper], (N, *shape); computed, and valid, in float64.

    Raises UnboundedError where there are none.
    """
    found = relaxed(step.function, lower.to(torch.float64), upper.to(torch.float64)).to(lower.dtype)
    _require_finite(found.lower_offset, found.upper_offset, found.low, found.high)
    return found


def _require_finite(*values: Tensor) -> None:
    if not all(bool(torch.isfinite(one).all()) for one in values):
        raise UnboundedError


def loose(step: Activation | Product, lower: Tensor, upper: Tensor) -> Tensor:
    """Where tighter bounds of what a step reads would tighten its relaxation, (N, *shape)."""
    if isinstance(step, Activation) and isinstance(step.function, PiecewiseLinear):
        return lines(step, lower, upper).loose
    return upper > lower


def checked(function: ScalarFunction) -> ScalarFunction:
    """The function itself; NotImplementedError where it has no lines or nothing is known of its computed values."""
    if function.rounding(torch.float64) is None:
        raise NotImplementedError("has no known accuracy")
    point = torch.zeros(1, *broadcast_size(function.parameters), dtype=torch.float64)
    relaxed(function, point + 1, point + 2)
    return function


@singledispatch
def relaxed(function: ScalarFunction, lower: Tensor, upper: Tensor) -> Lines:
    """The lines of one kind of activation between bounds in float64."""
    raise NotImplementedError(f"has no relaxation ({type(function).__name__})")


@relaxed.register
def _(function: PiecewiseLinear, lower: Tensor, upper: Tensor) -> Lines:
    return piecewise_linear(function, lower, upper)


@relaxed.register(Smooth)
@relaxed.register(Sin)
@relaxed.register(Cos)
@relaxed.register(PerCoordinate)
def _(function: ScalarFunction, lower: Tensor, upper: Tensor) -> Lines:
    return by_cells(function, lower, upper, function.slopes_on)


@relaxed.register
def _(function: Written, lower: Tensor, upper: Tensor) -> Lines:
    return by_cells(function, lower, upper, function.slopes_at_once)


@relaxed.register
def _(function: Curve, lower: Tensor, upper: Tensor) -> Lines:
    return curved(function, lower, upper)


@relaxed.register
def _(function: Square, lower: Tensor, upper: Tensor) -> Lines:
    """A square is never negative, and 0 in an interval that holds 0."""
    found = curved(function, lower, upper)
    within = (lower <= 0) & (upper >= 0)
    return _replaced(found, low=torch.where(within, 0.0, found.low.clamp_min(0)))


def curved(function: Curve, lower: Tensor, upper: Tensor) -> Lines:
    """Lines of a convex or concave function: a tangent on one side, a chord on the other."""
    bend = function.bend(lower, upper)
    if not bool((bend != 0).all()):
        raise UnboundedError
    middle = torch.minimum(torch.maximum(lower / 2 + upper / 2, lower), upper)
    points = [lower, middle, upper]
    values = [function(point) for point in points]
    chord, tangent = _chord([lower, upper], [values[0], values[2]]), function.derivative(middle)
    units = UNITS + 4 * FUNCTION_UNITS * UNIT_ROUNDOFF[torch.float64]
    size = torch.stack([value.abs() for value in values]).amax(0)

    def offsets(slope: Tensor) -> tuple[Tensor, list[Tensor]]:
        room = units * (size + slope.abs() * torch.maximum(lower.abs(), upper.abs())) + TINY
        return room, [value - slope * point for value, point in zip(values, points, strict=True)]

    (room, (left, _, right)), (tangent_room, (_, touching, _)) = offsets(chord), offsets(tangent)
    convex = bend > 0
    below = torch.where(convex, touching - tangent_room, torch.minimum(left, right) - room)
    above = torch.where(convex, torch.maximum(left, right) + room, touching + tangent_room)
    lower_slope, upper_slope = torch.where(convex, tangent, chord), torch.where(convex, chord, tangent)
    slack = units * size + TINY
    low, high = torch.minimum(values[0], values[2]) - slack, torch.maximum(values[0], values[2]) + slack
    return Lines(lower_slope, below, upper_slope, above, lower_slope, lower_slope, upper > lower, low, high)


def piecewise_linear(function: PiecewiseLinear, lower: Tensor, upper: Tensor) -> Lines:
    """Lines of a continuous function of several linear pieces."""
    (units, lost), kinks, pieces = _units(function, lower), function.kinks, function.pieces
    places = [torch.as_tensor(kink, dtype=lower.dtype, device=lower.device).expand_as(lower) for kink in kinks]
    inside = [torch.minimum(torch.maximum(place, lower), upper) for place in places]
    points = [lower, *inside, upper]
    values = [function(point) for point in points]
    slopes = [torch.as_tensor(piece, dtype=lower.dtype, device=lower.device).expand_as(lower) for piece in pieces]
    chord = _chord(points, values)
    size = torch.stack([value.abs() for value in values]).amax(0) + torch.maximum(lower.abs(), upper.abs())

    def extremes(slope: Tensor) -> tuple[Tensor, Tensor]:
        gaps = torch.stack([value - slope * point for point, value in zip(points, values, strict=True)])
        room = units * (size + slope.abs() * torch.maximum(lower.abs(), upper.abs())) + lost
        return gaps.amin(0) - room, gaps.amax(0) + room

    # A line of the one piece that [lower, upper] lies on is exact; its slope is taken as it is, without rounding.
    starts, ends = [torch.full_like(lower, -torch.inf), *places], [*places, torch.full_like(lower, torch.inf)]
    only = [(lower >= start) & (upper <= end) for start, end in zip(starts, ends, strict=True)]
    found = _best([chord, *slopes], extremes, lower, upper, only=torch.stack(only).any(0))
    low, high = torch.stack(values).amin(0), torch.stack(values).amax(0)
    through = (places[0] == 0) & (function(torch.zeros_like(lower)) == 0)
    return _with_free_slopes(found, through, slopes, low - units * size - lost, high + units * size + lost)


def _with_free_slopes(found: Lines, through: Tensor, slopes: list[Tensor], low: Tensor, high: Tensor) -> Lines:
    """One convex kink in the origin: every slope between those of the two pieces gives a line below through it."""
    if len(slopes) != 2:
        return _replaced(found, low=low, high=high)
    flat, steep = slopes
    free = found.loose & through & (flat <= steep)
    below = torch.where(free, torch.where(found.lower_slope > (flat + steep) / 2, steep, flat), found.lower_slope)
    return _replaced(
        found,
        lower_slope=below,
        lower_offset=torch.where(free, torch.zeros_like(low), found.lower_offset),
        flattest=torch.where(free, flat, below),
        steepest=torch.where(free, steep, below),
        low=low,
        high=high,
    )


def by_cells(
    function: ScalarFunction,
    lower: Tensor,
    upper: Tensor,
    slopes_on: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Lines:
    """Lines of any function with intervals of its difference quotients, which `slopes_on` gives for many intervals."""
    share = torch.arange(CELLS + 1).to(lower).reshape(-1, *[1] * lower.ndim)
    points = torch.minimum(lower + share * ((upper - lower) / CELLS), upper)
    points[-1] = upper
    (units, lost), values = _units(function, points), function(points)
    lost += 2 * function.jump
    size = values.abs().amax(0) + torch.maximum(lower.abs(), upper.abs())
    flat, steep = slopes_on(points[:-1], points[1:])
    spans = points[1:] - points[:-1]
    chord = _chord([lower, upper], [values[0], values[-1]])
    quotients = _chord([points[:-1], points[1:]], [values[:-1], values[1:]])
    candidates = [chord, *(quotients[place] for place in (0, CELLS // 4, CELLS // 2, 3 * CELLS // 4, CELLS - 1))]

    def extremes(slope: Tensor) -> tuple[Tensor, Tensor]:
        gaps = values - slope * points
        left, right, down, up = gaps[:-1], gaps[1:], flat - slope, steep - slope
        turning = (down < 0) & (up > 0)
        across = torch.where(turning, up - down, 1.0)
        bend = down * up * spans
        bottom = torch.where(turning, (up * left - down * right + bend) / across, left.minimum(right))
        top = torch.where(turning, (up * right - down * left - bend) / across, left.maximum(right))
        room = units * (1 + slope.abs()) * size + lost
        return bottom.amin(0) - room, top.amax(0) + room

    found = _best(candidates, extremes, lower, upper, only=torch.zeros_like(lower, dtype=torch.bool))
    low, high = extremes(torch.zeros_like(lower))
    return _replaced(found, low=low, high=high, loose=upper > lower)


def _units(function: ScalarFunction, points: Tensor) -> tuple[float, float]:
    """Relative to the sizes of all terms, and beside: the roundings of an offset and of the values at some points."""
    own = function.rounding(torch.float64)
    if own is None or bool((points.abs() > own.reach).any()):
        return math.inf, math.inf
    return UNITS + 4 * (1 + function.constant) * own.relative, 4 * own.lost


def _chord(points: list[Tensor], values: list[Tensor]) -> Tensor:
    width = points[-1] - points[0]
    return torch.where(width > 0, (values[-1] - values[0]) / torch.where(width > 0, width, 1.0), 0.0)


def _best(
    slopes: list[Tensor],
    extremes: Callable[[Tensor], tuple[Tensor, Tensor]],
    lower: Tensor,
    upper: Tensor,
    *,
    only: Tensor,
) -> Lines:
    """Of the lines with these slopes, the best ones at the middle of [lower, upper]. only: where nothing is loose."""
    middle = lower / 2 + upper / 2
    below = above = None
    for slope in slopes:
        low, high = extremes(slope)
        if below is None or above is None:
            below, above = (slope, low), (slope, high)
            continue
        better = slope * middle + low > below[0] * middle + below[1]
        below = (torch.where(better, slope, below[0]), torch.where(better, low, below[1]))
        better = slope * middle + high < above[0] * middle + above[1]
        above = (torch.where(better, slope, above[0]), torch.where(better, high, above[1]))
    assert below is not None
    assert above is not None
    return Lines(*below, *above, below[0], below[0], ~only, below[1], above[1])


def _replaced(found: Lines, **parts: Tensor) -> Lines:
    return Lines(**{field.name: parts.get(field.name, getattr(found, field.name)) for field in fields(found)})
