"""Scalar functions written in several operations: x * sigmoid(x), where(x > 0, x, 0.1 x), x / (1 + |x|) and the like.

The derivative of the expression is enclosed by interval arithmetic on cells of the real line, which are bisected where
the steepest slope may still lie. On the two unbounded cells, products such as x sigmoid'(x) are 0 times infinity;
therefore enclosures of x f'(x), of f(x) / x and of the elasticity x f'(x) / f(x), which stay finite, are propagated
    too: (f g)' = f' g + (f / x) (x g'), x (g o f)' = (y g'(y) at y = f) times the elasticity of f.
Difference quotients of a continuous function lie in the hull of its derivatives; continuity is checked where a
condition changes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction

import torch
from torch import Tensor

from robustres.certify.maps.activation import Activation, Curve
from robustres.certify.maps.curves import Power
from robustres.certify.maps.interval import Interval, everything, widened
from robustres.certify.maps.piecewise_linear import Abs, Clamp
from robustres.certify.maps.smooth import RootOfSquare, Softplus
from robustres.certify.proof.rounding import FUNCTION_UNITS, least
from robustres.numerics import UNIT_ROUNDOFF

UNITS, LOST = FUNCTION_UNITS * UNIT_ROUNDOFF[torch.float64], least(torch.float64)  # of one operation


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
        """The value at x, with conditions decided at `decide`: at x, or exactly at a point beside it."""

    @abstractmethod
    def jet(self, x: Interval) -> Jet:
        """Enclosures on the cells x."""

    @abstractmethod
    def error(self, x: Interval) -> Tensor:
        """Bound on the errors of the values that float64 computes on finite cells x; NaN or infinite if none is known.

        Of conditions that are decided by computed values, see `Written.gaps`.
        """

    @property
    def parts(self) -> "tuple[Expression, ...]":
        """The subexpressions."""
        return tuple(part for part in vars(self).values() if isinstance(part, Expression))

    def breaks(self) -> Iterator[Fraction]:
        """The points at which a condition changes, exactly."""
        for part in self.parts:
            yield from part.breaks()


@dataclass(frozen=True, eq=False)
class Variable(Expression):
    """x."""

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return x

    def jet(self, x: Interval) -> Jet:
        one = Interval.of(1.0, x.low)
        return Jet(x, one, x, one, one)

    def error(self, x: Interval) -> Tensor:
        return torch.zeros_like(x.low)


@dataclass(frozen=True, eq=False)
class Constant(Expression):
    """A number."""

    number: float

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return torch.full_like(x, self.number)

    def jet(self, x: Interval) -> Jet:
        value, zero = Interval.of(self.number, x.low), Interval.of(0.0, x.low)
        return Jet(value, zero, zero, value.over(x), zero)

    def error(self, x: Interval) -> Tensor:
        return torch.full_like(x.low, UNITS * abs(self.number))


@dataclass(frozen=True, eq=False)
class Total(Expression):
    """left + right."""

    left: Expression
    right: Expression

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return self.left.at(x, decide) + self.right.at(x, decide)

    def jet(self, x: Interval) -> Jet:
        a, b = self.left.jet(x), self.right.jet(x)
        value, moment = a.value + b.value, a.moment + b.moment
        same = ((a.value.low >= 0) & (b.value.low >= 0)) | ((a.value.high <= 0) & (b.value.high <= 0))
        # If both have one sign, a weighted mean of the two.
        elasticity = a.elasticity.hull(b.elasticity).where(same, everything(x.low))
        return _jet(x, value, a.slope + b.slope, moment, a.ratio + b.ratio, elasticity)

    def error(self, x: Interval) -> Tensor:
        (a, off), (b, other) = ((part.jet(x).value.largest(), part.error(x)) for part in (self.left, self.right))
        return off + other + UNITS * (a + off + b + other)


@dataclass(frozen=True, eq=False)
class Times(Expression):
    """left right."""

    left: Expression
    right: Expression

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

    def error(self, x: Interval) -> Tensor:
        (a, off), (b, other) = ((part.jet(x).value.largest(), part.error(x)) for part in (self.left, self.right))
        return a * other + off * b + off * other + UNITS * (a + off) * (b + other) + LOST


@dataclass(frozen=True, eq=False)
class Inverse(Expression):
    """1 / inner."""

    inner: Expression

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return 1 / self.inner.at(x, decide)

    def jet(self, x: Interval) -> Jet:
        a = self.inner.jet(x)
        value, elasticity = a.value.reciprocal(), -a.elasticity
        return _jet(x, value, -(a.slope * (value * value)), elasticity * value, value.over(x), elasticity)

    def error(self, x: Interval) -> Tensor:
        value, off = self.inner.jet(x).value, self.inner.error(x)
        near = torch.maximum(value.low, -value.high) - off  # from 0 to the computed divisor
        return torch.where(near > 0, off / near / near + UNITS / near + LOST, math.inf)


@dataclass(frozen=True, eq=False)
class Applied(Expression):
    """An activation of inner."""

    function: Activation
    inner: Expression

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return self.function(self.inner.at(x, decide))

    def jet(self, x: Interval) -> Jet:
        a = self.inner.jet(x)
        slopes = Interval(*self.function.slopes_on(a.value.low, a.value.high))
        value = _range(self.function, a.value, slopes)
        own = slopes * a.value
        far, zero = _far_moment(self.function, a.value), torch.zeros_like(x.low)
        own = own.meet(Interval(-far, far)).where(far.isfinite(), own)
        signed = (a.value.low > 0) | (a.value.high < 0)
        moment = slopes * a.moment
        moment = moment.meet(own * a.elasticity).where(signed, moment)
        elasticity = everything(x.low)
        if isinstance(self.function, Softplus):  # at or above its argument, slope at most 1
            elasticity = (Interval(zero, zero + 1) * a.elasticity).where(a.value.low > 0, elasticity)
        positive = isinstance(self.function, Clamp) and self.function.low > 0
        if positive or isinstance(self.function, RootOfSquare):  # y g'(y) / g(y) is 0 or 1, or y^2 / (y^2 + shift)
            elasticity = Interval(zero, zero + 1) * a.elasticity
        if isinstance(self.function, Clamp):  # the identity between its limits
            inside = (a.value.low >= self.function.low) & (a.value.high <= self.function.high)
            elasticity = a.elasticity.where(inside, elasticity)
        if isinstance(self.function, Power):
            elasticity = Interval.of(self.function.exponent, x.low) * a.elasticity
        if isinstance(self.function, Abs):
            elasticity = a.elasticity.where(signed, elasticity)
        return _jet(x, value, slopes * a.slope, moment, value.over(x), elasticity)

    def error(self, x: Interval) -> Tensor:
        function, value, off = self.function, self.inner.jet(x).value, self.inner.error(x)
        own = function.rounding(torch.float64)
        if own is None:
            return torch.full_like(x.low, math.inf)
        wide = Interval(value.low - off, value.high + off)
        slopes = Interval(*function.slopes_on(wide.low, wide.high))
        values = _range(function, wide, slopes)
        spread = torch.fmin(slopes.largest() * off, values.high - values.low)
        if isinstance(function, Power) and 0 < function.exponent < 1:  # |a^p - b^p| <= |a - b|^p
            spread = torch.fmin(spread, off**function.exponent).where(value.low >= 0, spread)
        spread, size = torch.where(off > 0, spread, 0.0), value.largest() + off
        everywhere = Interval(*(torch.full_like(x.low, slope) for slope in function.slopes))
        most = _range(function, everything(x.low), everywhere).largest()
        added = values.largest()
        if not isinstance(function, Curve):  # saturated values are accurate relative to themselves and their moments
            added = added + torch.fmin(torch.fmin(function.constant * size, most), _far_moment(function, wide))
        return torch.where(size > own.reach, math.inf, spread + own.relative * added + own.lost + function.jump)


@dataclass(frozen=True, eq=False)
class Exponential(Expression):
    """1 / (1 + exp(z)), exp(z) / (1 + exp(z)) or log(1 + exp(z)), with the enclosures of the activation that it equals.

    exact: that activation of z or -z. most: the largest z for which exp does not overflow; infinite if it may.
    """

    computed: Expression
    exact: Expression
    z: Expression
    most: float = math.inf

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The exact one: conditions and constants of the others are the same."""
        return (self.exact,)

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return self.computed.at(x, decide)

    def jet(self, x: Interval) -> Jet:
        return self.exact.jet(x)

    def error(self, x: Interval) -> Tensor:
        """That of the activation, the units of the exponential and of two more operations, relative to the value, and
        for the logarithm those of 1 + exp(z), which are absolute."""
        value, off = self.exact.jet(x).value.largest(), self.exact.error(x)
        largest = self.z.jet(x).value.high + self.z.error(x)
        absolute = 0.0 if isinstance(self.computed, Inverse) else 2 * UNITS
        error = off + 4 * UNITS * (value + off) + absolute + LOST
        return torch.where(largest <= self.most, error, math.inf)


@dataclass(frozen=True, eq=False)
class Chosen(Expression):
    """`above` on one side of a point, or outside two points; `below` elsewhere.

    rising: whether `above` applies for large x; always True for two points. strict: `below` applies at the points.
    """

    places: tuple[Fraction, ...]
    rising: bool
    strict: bool
    above: Expression
    below: Expression

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
        (down, up), (last_down, last_up) = around(self.places[0]), around(self.places[-1])
        over, under = (x > last_down, x < up) if self.strict else (x >= last_up, x <= down)
        return over | under if len(self.places) > 1 else over if self.rising else under

    def _sides(self, x: Interval) -> tuple[Tensor, Tensor]:
        """The cells on which `above` alone, or `below` alone, is chosen."""
        (down, up), (last_down, last_up) = around(self.places[0]), around(self.places[-1])
        right, left = x.low >= last_up, x.high <= down
        if len(self.places) > 1:
            return right | left, (x.low >= up) & (x.high <= last_down)
        return (right, left) if self.rising else (left, right)

    def at(self, x: Tensor, decide: Tensor | Fraction) -> Tensor:
        return torch.where(self._holds(decide), self.above.at(x, decide), self.below.at(x, decide))

    def jet(self, x: Interval) -> Jet:
        (a, b), (over, under) = (self.above.jet(x), self.below.jet(x)), self._sides(x)
        pairs = ((getattr(a, field.name), getattr(b, field.name)) for field in fields(Jet))
        return Jet(*(left.where(over, right.where(under, left.hull(right))) for left, right in pairs))

    def error(self, x: Interval) -> Tensor:
        above, below = self.above.error(x), self.below.error(x)
        over, under = self._sides(x)
        return torch.where(over, above, torch.where(under, below, torch.maximum(above, below)))


def around(place: Fraction) -> tuple[float, float]:
    """The largest float64 at or below the point, and the smallest at or above it.

    >>> around(Fraction(1, 2))
    (0.5, 0.5)
    """
    near = float(place)
    if Fraction(near) == place:
        return near, near
    return (near, math.nextafter(near, math.inf)) if Fraction(near) < place else (math.nextafter(near, -math.inf), near)


def _far_moment(function: Activation, inner: Interval) -> Tensor:
    """Upper bound on |y f'(y)| on an interval far from 0; infinite if nothing is known."""
    right = function.far_moment(inner.low.clamp_min(0))[1]
    left = function.far_moment((-inner.high).clamp_min(0))[0]
    return torch.where(inner.low > 0, right, torch.where(inner.high < 0, left, math.inf))


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
    """Each field intersected with the consequences of the others."""
    moment = moment.meet(x * slope).meet(value * elasticity)
    return Jet(
        value,
        slope.meet(moment.over(x)),
        moment,
        ratio.meet(value.over(x)),
        elasticity.meet(moment.over(value)),
    )
