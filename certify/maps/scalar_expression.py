"""Scalar functions that a network writes out: x * sigmoid(x), where(x > 0, x, 0.1 x), x / (1 + |x|), and what is alike.

The derivative of the expression is enclosed by interval arithmetic on cells of the real line, which are halved where
the steepest slope may still lie. On the two unbounded cells products such as x sigmoid'(x) are 0 times infinity; there
the enclosures of x f'(x), of f(x) / x and of the elasticity x f'(x) / f(x) are carried along, which stay finite:
    (f g)' = f' g + (f / x) (x g'),    x (g o f)' = (y g'(y) at y = f) times the elasticity of f.
Difference quotients of a continuous function lie in the hull of its derivatives; continuity is checked where a
condition changes its answer.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from robustres.certify.maps.activation import FUNCTION_UNITS, Activation, Parameter
from robustres.certify.maps.interval import Interval, everything, widened
from robustres.certify.maps.piecewise_linear import Abs
from robustres.certify.maps.smooth import Softplus
from robustres.numerics import UNIT_ROUNDOFF

CELLS = 48  # halvings of the cells in which the steepest slope may lie
TOLERANCE = 1e-6  # of the slopes, absolute and relative
PARTS = 32  # of an interval on which slopes are asked for
FARTHEST = 2.0**20
REACH = 2.0**10
# Of the largest values and moments at a place: what the rounding of constants may leave there.
GAP = 8 * UNIT_ROUNDOFF[torch.float64]


@dataclass(frozen=True, eq=False)
class Jet:
    """Enclosures of an expression f on cells x: value f, slope f', moment x f', ratio f / x, elasticity x f' / f."""

    value: Interval
    slope: Interval
    moment: Interval
    ratio: Interval
    elasticity: Interval


class Expression(ABC):
    """A function of one variable as a tree of operations."""

    @abstractmethod
    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        """The value at x, conditions being decided at `decide`: at x, or exactly at a place beside it."""

    @abstractmethod
    def jet(self, x: Interval) -> Jet:
        """Enclosures on the cells x."""

    @property
    @abstractmethod
    def parts(self) -> "tuple[Expression, ...]":
        """What it is computed from."""

    def breaks(self) -> Iterator[Fraction]:
        """Where a condition changes its answer, exactly."""
        for part in self.parts:
            yield from part.breaks()

    def size(self) -> int:
        """Operations."""
        return 1 + sum(part.size() for part in self.parts)


@dataclass(frozen=True, eq=False)
class Variable(Expression):
    """x."""

    parts = ()

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return x

    def jet(self, x: Interval) -> Jet:
        one = Interval.of(1.0, x.low)
        return Jet(x, one, x, one, one)


@dataclass(frozen=True, eq=False)
class Constant(Expression):
    """A number."""

    number: float
    parts = ()

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return torch.full_like(x, self.number)

    def jet(self, x: Interval) -> Jet:
        value, zero = Interval.of(self.number, x.low), Interval.of(0.0, x.low)
        return Jet(value, zero, zero, value.over(x), zero)


@dataclass(frozen=True, eq=False)
class Total(Expression):
    """left + right."""

    left: Expression
    right: Expression

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.left, self.right)

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return self.left.at(x, decide) + self.right.at(x, decide)

    def jet(self, x: Interval) -> Jet:
        a, b = self.left.jet(x), self.right.jet(x)
        value, moment = a.value + b.value, a.moment + b.moment
        same = ((a.value.low >= 0) & (b.value.low >= 0)) | ((a.value.high <= 0) & (b.value.high <= 0))
        # Of one sign: a weighted mean of the two.
        elasticity = a.elasticity.hull(b.elasticity).where(same, everything(x.low))
        return _jet(x, value, a.slope + b.slope, moment, a.ratio + b.ratio, elasticity)


@dataclass(frozen=True, eq=False)
class Times(Expression):
    """left right."""

    left: Expression
    right: Expression

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.left, self.right)

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return self.left.at(x, decide) * self.right.at(x, decide)

    def jet(self, x: Interval) -> Jet:
        a, b = self.left.jet(x), self.right.jet(x)
        away = (x.low > 0) | (x.high < 0)
        first, second = a.slope * b.value, a.value * b.slope
        first = first.meet(a.moment * b.ratio).where(away, first)
        second = second.meet(a.ratio * b.moment).where(away, second)
        moment = a.moment * b.value + b.moment * a.value
        ratio = (a.ratio * b.value).meet(a.value * b.ratio).where(away, everything(x.low))
        return _jet(x, a.value * b.value, first + second, moment, ratio, a.elasticity + b.elasticity)


@dataclass(frozen=True, eq=False)
class Inverse(Expression):
    """1 / inner."""

    inner: Expression

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.inner,)

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return 1 / self.inner.at(x, decide)

    def jet(self, x: Interval) -> Jet:
        a = self.inner.jet(x)
        value, elasticity = a.value.reciprocal(), -a.elasticity
        return _jet(x, value, -(a.slope * (value * value)), elasticity * value, value.over(x), elasticity)


@dataclass(frozen=True, eq=False)
class Applied(Expression):
    """An activation of inner."""

    function: Activation
    inner: Expression

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.inner,)

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return self.function(self.inner.at(x, decide))

    def jet(self, x: Interval) -> Jet:
        a = self.inner.jet(x)
        slopes = Interval(*self.function.slopes_on(a.value.low, a.value.high))
        value = _range(self.function, a.value, slopes)
        own = slopes * a.value
        right = self.function.far_moment(a.value.low.clamp_min(0))[1]
        left = self.function.far_moment((-a.value.high).clamp_min(0))[0]
        zero = torch.zeros_like(x.low)
        own = own.meet(Interval(-right, right)).where(a.value.low > 0, own)
        own = own.meet(Interval(-left, left)).where(a.value.high < 0, own)
        signed = (a.value.low > 0) | (a.value.high < 0)
        moment = slopes * a.moment
        moment = moment.meet(own * a.elasticity).where(signed, moment)
        elasticity = everything(x.low)
        if isinstance(self.function, Softplus):  # at or above its argument, slope at most 1
            elasticity = (Interval(zero, zero + 1) * a.elasticity).where(a.value.low > 0, elasticity)
        if isinstance(self.function, Abs):
            elasticity = a.elasticity.where(signed, elasticity)
        return _jet(x, value, slopes * a.slope, moment, value.over(x), elasticity)


@dataclass(frozen=True, eq=False)
class Chosen(Expression):
    """above on one side of a place, or outside two of them; below elsewhere.

    rising: whether `above` holds for large x; always where there are two places. strict: `below` holds at the places.
    """

    places: tuple[Fraction, ...]
    rising: bool
    strict: bool
    above: Expression
    below: Expression

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.above, self.below)

    def breaks(self) -> Iterator[Fraction]:
        yield from super().breaks()
        yield from self.places

    def _holds(self, x: Tensor | Fraction) -> Tensor:
        """Whether `above` is chosen, decided exactly."""
        if isinstance(x, Fraction):
            first, last = self.places[0], self.places[-1]
            right, left = x > last, x < first
            at = x in (first, last)
            sides = (right or left) if len(self.places) > 1 else right if self.rising else left
            return torch.tensor(sides or (at and not self.strict))
        (down, up), (last_down, last_up) = _around(self.places[0]), _around(self.places[-1])
        over, under = (x > last_down, x < up) if self.strict else (x >= last_up, x <= down)
        return over | under if len(self.places) > 1 else over if self.rising else under

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return torch.where(self._holds(decide), self.above.at(x, decide), self.below.at(x, decide))

    def jet(self, x: Interval) -> Jet:
        a, b = self.above.jet(x), self.below.jet(x)
        (down, up), (last_down, last_up) = _around(self.places[0]), _around(self.places[-1])
        right, left = x.low >= last_up, x.high <= down
        if len(self.places) > 1:
            over, under = right | left, (x.low >= up) & (x.high <= last_down)
        else:
            over, under = (right, left) if self.rising else (left, right)
        fields = ("value", "slope", "moment", "ratio", "elasticity")
        parts = []
        for name in fields:
            left, right = getattr(a, name), getattr(b, name)
            parts.append(left.where(over, right.where(under, left.hull(right))))
        return Jet(*parts)


def _around(place: Fraction) -> tuple[float, float]:
    """The largest float64 at or below the place, and the smallest at or above it.

    >>> _around(Fraction(1, 2))
    (0.5, 0.5)
    """
    near = float(place)
    if Fraction(near) == place:
        return near, near
    return (near, math.nextafter(near, math.inf)) if Fraction(near) < place else (math.nextafter(near, -math.inf), near)


def _range(function: Activation, inner: Interval, slopes: Interval) -> Interval:
    """The values of the function on an interval that may be unbounded."""
    ends = [function(end) for end in (inner.low, inner.high)]
    hull = Interval(torch.minimum(*ends), torch.maximum(*ends))
    monotone = (slopes.low >= 0) | (slopes.high <= 0)
    finite = torch.isfinite(inner.low) & torch.isfinite(inner.high)
    wide = everything(inner.low)
    if bool((finite & ~monotone).any()):
        near = [torch.where(finite, end, 0.0) for end in (inner.low, inner.high)]
        wide = Interval(*function.values_on(near[0], near[1])).where(finite, wide)
    known = ~(hull.low.isnan() | hull.high.isnan())
    return widened(hull).where(monotone & known, wide)


def _jet(x: Interval, value: Interval, slope: Interval, moment: Interval, ratio: Interval, elasticity: Interval) -> Jet:
    """Each field met with what follows from the others."""
    moment = moment.meet(x * slope)
    return Jet(
        value,
        slope.meet(moment.over(x)),
        moment,
        ratio.meet(value.over(x)),
        elasticity.meet(moment.over(value)),
    )


@dataclass(frozen=True, eq=False)
class Written(Activation):
    """The activation that an expression is. Raises ValueError where it jumps."""

    expression: Expression

    def __post_init__(self) -> None:
        _ = self.gaps

    @cached_property
    def gaps(self) -> float:
        """How far the values just before, at and just after the places where conditions change may be apart.

        They agree up to the rounding of the constants that the network holds. Raises ValueError where they do not.
        """
        places, total = sorted(set(self.expression.breaks())), 0.0
        for k, place in enumerate(places):
            before = (places[k - 1] + place) / 2 if k else place - 1
            after = (places[k + 1] + place) / 2 if k + 1 < len(places) else place + 1
            x = torch.tensor([float(place)], dtype=torch.float64)
            values = torch.cat([self.expression.at(x, decide) for decide in (before, place, after)])
            down, up = (torch.tensor([end], dtype=torch.float64) for end in _around(place))
            allowed = GAP * sum(_largest_jet(self.expression, Interval(down, up)))
            if not float(values.max() - values.min()) <= allowed:
                raise ValueError(f"it jumps between {values.min():.6g} and {values.max():.6g} at {float(place):.6g}")
            total += 2 * allowed
        return total

    def __call__(self, x: Tensor) -> Tensor:
        return self.expression.at(x, x)

    @cached_property
    def slopes(self) -> tuple[float, float]:
        """To TOLERANCE; infinite where no enclosure of the derivative is finite."""
        return -self._steepest(-1.0), self._steepest(1.0)

    def _steepest(self, sign: float) -> float:
        """At or above the largest value of sign f'."""
        powers = [2.0**k for k in range(-6, 13)]
        edges = sorted({-math.inf, *(-power for power in powers), 0.0, *powers, math.inf})
        edges = sorted({*edges, *(end for place in self.expression.breaks() for end in _around(place))})
        cells = Interval(torch.tensor(edges[:-1], dtype=torch.float64), torch.tensor(edges[1:], dtype=torch.float64))
        attained = settled = -math.inf
        for _ in range(CELLS):
            upper = self._upper(cells, sign)
            middle = torch.where(
                torch.isfinite(cells.low) & torch.isfinite(cells.high),
                (cells.low + cells.high) / 2,
                torch.where(torch.isfinite(cells.low), 2 * cells.low, 2 * cells.high),
            )
            slope = self.expression.jet(Interval(middle, middle)).slope
            point = sign * (slope.low if sign > 0 else slope.high)
            attained = max(
                attained, float(point[point.isfinite()].max()) if bool(point.isfinite().any()) else -math.inf
            )
            allowed = attained + TOLERANCE * (1 + abs(attained)) if math.isfinite(attained) else -math.inf
            small = (middle == cells.low) | (middle == cells.high) | (middle.abs() > FARTHEST)
            done = (upper <= allowed) | small
            settled = max(settled, float(upper[done].max()) if bool(done.any()) else -math.inf)
            if bool(done.all()) or settled == math.inf:
                return settled
            left, right, middle = cells.low[~done], cells.high[~done], middle[~done]
            cells = Interval(torch.cat([left, middle]), torch.cat([middle, right]))
            if len(cells.low) > 200_000:
                break
        return max(settled, float(self._upper(cells, sign).max()))

    def _upper(self, cells: Interval, sign: float) -> Tensor:
        slope = self.expression.jet(cells).slope
        return slope.high if sign > 0 else -slope.low

    def slopes_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The hull of the derivative on parts of the interval; all slopes where an end is infinite."""
        finite = torch.isfinite(lower) & torch.isfinite(upper)
        start, stop = torch.where(finite, lower, 0.0), torch.where(finite, upper, 0.0)
        low, high = torch.full_like(lower, math.inf), torch.full_like(lower, -math.inf)
        for k in range(PARTS):
            left = start + (stop - start) * (k / PARTS)
            right = stop if k == PARTS - 1 else start + (stop - start) * ((k + 1) / PARTS)
            slope = self.expression.jet(Interval(torch.minimum(left, stop), torch.minimum(right, stop))).slope
            low, high = torch.minimum(low, slope.low), torch.maximum(high, slope.high)
        least, most = self.slopes
        return torch.where(finite, low, least).clamp(least, most), torch.where(finite, high, most).clamp(least, most)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The same function at every coordinate."""
        return ()

    @cached_property
    def jump(self) -> float:
        """What rounding may do near 0, where it is not relative to the value: every operation, a few units of the
        largest value that it meets within the reach of 1."""
        near = Interval(torch.tensor([-1.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64))
        return 16 * FUNCTION_UNITS * UNIT_ROUNDOFF[torch.float64] * sum(_largest(self.expression, near)) + self.gaps

    def relative_error(self, dtype: torch.dtype) -> float | None:
        """Every operation a few units, relative to the largest of |x| times the slopes that it meets."""
        reach = Interval(torch.tensor([-REACH], dtype=torch.float64), torch.tensor([REACH], dtype=torch.float64))
        most = sum(_largest(self.expression, reach)) / REACH
        total = 16 * FUNCTION_UNITS * UNIT_ROUNDOFF[torch.float64] * max(1.0, most) / min(1.0, max(self.constant, 1e-6))
        return total if dtype == torch.float64 and math.isfinite(total) and math.isfinite(self.jump) else None


def _largest(expression: Expression, cell: Interval) -> Iterator[float]:
    """The largest absolute value of every part on a cell."""
    yield float(expression.jet(cell).value.largest())
    for part in expression.parts:
        yield from _largest(part, cell)


def _largest_jet(expression: Expression, cell: Interval) -> Iterator[float]:
    """The largest absolute value and moment of every part on a cell."""
    jet = expression.jet(cell)
    yield float(jet.value.largest()) + float(jet.moment.largest())
    for part in expression.parts:
        yield from _largest_jet(part, cell)
