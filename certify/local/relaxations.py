"""Lines below and above an activation between proven bounds of its argument.

The slope of a line may be any number; its offset is what is proved. For a function of several linear pieces the
extremes of phi(z) - slope z lie at the ends of the interval and at the kinks between. For a smooth one the interval is
cut into cells, and within a cell the values at its ends and an interval of its slopes bound the rest. Among some slopes
the one whose line is best at the middle of the interval is taken, which leaves the smallest area.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import singledispatch

import torch
from torch import Tensor

from robustres.certify.local.steps import Activation
from robustres.certify.maps.activation import Activation as ScalarFunction
from robustres.certify.maps.activation import PiecewiseLinear, Smooth, broadcast_size
from robustres.certify.maps.smooth import Cos, Sin
from robustres.numerics import UNIT_ROUNDOFF

CELLS = 24
# Roundings of what a line's offset is computed from, with room: relative to the sizes of all terms.
UNITS = 32 * UNIT_ROUNDOFF[torch.float64]


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


def lines(step: Activation, lower: Tensor, upper: Tensor) -> Lines:
    """The lines of an activation for arguments in [lower, upper], (N, *shape); computed, and valid, in float64."""
    return relaxed(step.function, lower.to(torch.float64), upper.to(torch.float64)).to(lower.dtype)


def checked(function: ScalarFunction) -> ScalarFunction:
    """The function itself; NotImplementedError where it has no lines or nothing is known of its computed values."""
    if function.relative_error(torch.float64) is None:
        raise NotImplementedError("has no known accuracy")
    point = torch.zeros(1, *broadcast_size(function.parameters), dtype=torch.float64)
    relaxed(function, point, point + 1)
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
def _(function: ScalarFunction, lower: Tensor, upper: Tensor) -> Lines:
    return by_cells(function, lower, upper)


def piecewise_linear(function: PiecewiseLinear, lower: Tensor, upper: Tensor) -> Lines:
    """Lines of a continuous function of several linear pieces."""
    kinks, pieces, units = function.kinks, function.pieces, _units(function)
    places = [torch.as_tensor(kink, dtype=lower.dtype, device=lower.device).expand_as(lower) for kink in kinks]
    inside = [torch.minimum(torch.maximum(place, lower), upper) for place in places]
    points = [lower, *inside, upper]
    values = [function(point) for point in points]
    slopes = [torch.as_tensor(piece, dtype=lower.dtype, device=lower.device).expand_as(lower) for piece in pieces]
    chord = _chord(points, values)
    size = torch.stack([value.abs() for value in values]).amax(0) + torch.maximum(lower.abs(), upper.abs())

    def extremes(slope: Tensor) -> tuple[Tensor, Tensor]:
        gaps = torch.stack([value - slope * point for point, value in zip(points, values, strict=True)])
        room = units * (size + slope.abs() * torch.maximum(lower.abs(), upper.abs()))
        return gaps.amin(0) - room, gaps.amax(0) + room

    # A line of the one piece that [lower, upper] lies on is exact; its slope is taken as it is, without rounding.
    starts, ends = [torch.full_like(lower, -torch.inf), *places], [*places, torch.full_like(lower, torch.inf)]
    only = [(lower >= start) & (upper <= end) for start, end in zip(starts, ends, strict=True)]
    found = _best([chord, *slopes], extremes, lower, upper, only=torch.stack(only).any(0))
    low, high = torch.stack(values).amin(0), torch.stack(values).amax(0)
    through = (places[0] == 0) & (function(torch.zeros_like(lower)) == 0)
    return _with_free_slopes(found, through, slopes, low - units * size, high + units * size)


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


def by_cells(function: ScalarFunction, lower: Tensor, upper: Tensor) -> Lines:
    """Lines of any function with intervals of its difference quotients."""
    width = (upper - lower) / CELLS
    points = [lower + place * width for place in range(CELLS)] + [upper]
    points = [torch.minimum(point, upper) for point in points]
    values = [function(point) for point in points]
    size = torch.stack([value.abs() for value in values]).amax(0) + torch.maximum(lower.abs(), upper.abs())
    cells = [function.slopes_on(left, right) for left, right in itertools.pairwise(points)]
    chord = _chord(points, values)
    quotients = [_chord(points[place : place + 2], values[place : place + 2]) for place in range(CELLS)]
    candidates = [chord, *(quotients[place] for place in (0, CELLS // 4, CELLS // 2, 3 * CELLS // 4, CELLS - 1))]

    def extremes(slope: Tensor) -> tuple[Tensor, Tensor]:
        low, high = torch.full_like(lower, torch.inf), torch.full_like(lower, -torch.inf)
        gaps = [value - slope * point for point, value in zip(points, values, strict=True)]
        for place, (flat, steep) in enumerate(cells):
            left, right, span = gaps[place], gaps[place + 1], points[place + 1] - points[place]
            down, up = flat - slope, steep - slope
            turning = (down < 0) & (up > 0)
            across = torch.where(turning, up - down, torch.ones_like(up))
            bottom = torch.where(turning, (up * left - down * right + down * up * span) / across, left.minimum(right))
            top = torch.where(turning, (up * right - down * left - down * up * span) / across, left.maximum(right))
            low, high = torch.minimum(low, bottom), torch.maximum(high, top)
        room = _units(function) * (1 + slope.abs()) * size + 2 * function.jump
        return low - room, high + room

    found = _best(candidates, extremes, lower, upper, only=torch.zeros_like(lower, dtype=torch.bool))
    low, high = extremes(torch.zeros_like(lower))
    return _replaced(found, low=low, high=high, loose=upper > lower)


def _units(function: ScalarFunction) -> float:
    """Relative to the sizes of all terms: the roundings of an offset, and how far computed values may be off."""
    error = function.relative_error(torch.float64)
    return UNITS + 4 * (1 + function.constant) * (math.inf if error is None else error)


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
