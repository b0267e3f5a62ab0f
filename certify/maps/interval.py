"""Intervals of real numbers as pairs of tensors, rounded outwards; infinite ends are allowed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.maps.activation import WIDENING
from robustres.certify.maps.linear_map import LinearMap
from robustres.certify.maps.rounding import ALGORITHM_FACTOR
from robustres.numerics import gamma

TINY = 5e-324


@dataclass(frozen=True, eq=False)
class Interval:
    """For each coordinate, all numbers between `low` and `high`."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, value: float | Tensor, like: Tensor) -> "Interval":
        """A single number, in the shape of `like`."""
        ends = torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like)
        return cls(ends, ends)

    def __add__(self, other: "Interval") -> "Interval":
        return _outward(self.low + other.low, self.high + other.high)

    def __neg__(self) -> "Interval":
        return Interval(-self.high, -self.low)

    def __mul__(self, other: "Interval") -> "Interval":
        products = _times(torch.stack((self.low, self.high))[:, None], torch.stack((other.low, other.high))[None])
        return _outward(products.amin((0, 1)), products.amax((0, 1)))

    def reciprocal(self) -> "Interval":
        """1 / x; the whole line where 0 lies inside or at an end."""
        met = (self.low <= 0) & (self.high >= 0)
        low, high = 1 / self.high, 1 / self.low
        found = _outward(low, high)
        return Interval(
            torch.where(met, -torch.inf, found.low),
            torch.where(met, torch.inf, found.high),
        )

    def over(self, other: "Interval") -> "Interval":
        """The quotient; the whole line where 0 is in the other interval."""
        met = (other.low <= 0) & (other.high >= 0)
        return everything(self.low).where(met, self * other.reciprocal())

    def hull(self, other: "Interval") -> "Interval":
        """The smallest interval that contains both."""
        return Interval(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

    def meet(self, other: "Interval") -> "Interval":
        """The intersection, for two enclosures of the same number."""
        low, high = torch.maximum(self.low, other.low), torch.minimum(self.high, other.high)
        return Interval(torch.minimum(low, high), torch.maximum(low, high))

    def where(self, chosen: Tensor, other: "Interval") -> "Interval":
        """This one where `chosen`, the other elsewhere."""
        return Interval(torch.where(chosen, self.low, other.low), torch.where(chosen, self.high, other.high))

    def largest(self) -> Tensor:
        """The largest absolute value."""
        return torch.maximum(self.low.abs(), self.high.abs())


def affine_interval(
    map_: LinearMap,
    absolute: LinearMap,
    constant: Tensor,
    constant_size: Tensor,
    roundings: int | None,
    low: Tensor,
    high: Tensor,
) -> tuple[Interval, Tensor]:
    """map_(x) + constant for finite low <= x <= high (N, *shape), and at or above the size of all that is added up.

    absolute: at or above the absolute values of the exact map's entries. constant_size: at or above everything that was
    added up to the constant. roundings: of a coordinate of the product and of the constant; with None nothing is
    charged, for a search.
    """
    centre, radius = map_(low / 2 + high / 2) + constant, absolute(high / 2 - low / 2)
    if roundings is None:
        return Interval(centre - radius, centre + radius), radius
    size = (absolute(torch.maximum(low.abs(), high.abs())) + constant_size) * (1 + 1e-6)
    radius = radius + 4 * gamma(ALGORITHM_FACTOR * roundings + 8) * size
    return Interval(centre - radius, centre + radius), size


def everything(like: Tensor) -> Interval:
    """The whole line at every coordinate."""
    return Interval(torch.full_like(like, -torch.inf), torch.full_like(like, torch.inf))


def widened(value: Interval) -> Interval:
    """Widened by the error of elementary functions."""
    slack = WIDENING * value.largest().nan_to_num(0, 0, 0)
    return Interval(value.low - slack, value.high + slack)


def _times(left: Tensor, right: Tensor) -> Tensor:
    """The product of ends, with 0 times infinity = 0, since the other end of the interval decides in that case."""
    product = left * right
    zero = (left == 0) | (right == 0)
    lost = (product == 0) & ~zero  # underflow
    return torch.where(
        zero, torch.zeros_like(product), torch.where(lost, torch.sign(left) * right.sign() * TINY, product)
    )


def _outward(low: Tensor, high: Tensor) -> Interval:
    """Rounded outwards by one floating-point number, except for an exact 0; NaN becomes the whole line."""
    low, high = low.nan_to_num(-torch.inf, torch.inf, -torch.inf), high.nan_to_num(torch.inf, torch.inf, -torch.inf)
    below, above = _next(low, -torch.inf), _next(high, torch.inf)
    return Interval(torch.where(low == 0, low, below), torch.where(high == 0, high, above))


def _next(values: Tensor, towards: float) -> Tensor:
    """The next floating-point numbers in a direction, differentiated as the identity, also by torch older than 2.9."""
    neighbours = torch.nextafter(values.detach(), torch.full_like(values, towards))
    if not values.requires_grad:
        return neighbours
    step = torch.where(values.isfinite(), neighbours - values.detach(), 0.0)
    return values + step  # exact, as the difference of two neighbours is
