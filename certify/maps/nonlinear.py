"""Maps of which only a Lipschitz constant is known: pooling, sorting, softmax, modules that state their own bound.

A kind is a frozen dataclass that defines all abstract members; otherwise it cannot be instantiated.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robustres.certify.maps.activation import WIDENING
from robustres.certify.maps.linear_map import Shape
from robustres.certify.maps.sector import GroupSort
from robustres.certify.maps.sorting import in_groups, out_of_groups
from robustres.certify.proof.bound import Bound
from robustres.certify.proof.rounding import FUNCTION_UNITS, Rounding, least
from robustres.numerics import UNIT_ROUNDOFF, rounded_up

# Assumed error in float64, relative to its values, of a module that states its own bound.
STATED_RELATIVE = 1e-9


class Opaque(ABC):
    """A map between unbatched shapes that is not elementwise and is bounded by a constant."""

    @property
    @abstractmethod
    def bound(self) -> Bound:
        """A bound on its Lipschitz constant in l2."""

    @property
    @abstractmethod
    def linf(self) -> float:
        """Upper bound on its Lipschitz constant from linf to linf; infinite if none is known."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """Its name in the report."""

    @property
    @abstractmethod
    def sorts(self) -> GroupSort | None:
        """The groups of channels that it sorts; None for other maps."""

    @abstractmethod
    def out_shape(self, shape: Shape) -> Shape:
        """The shape that it gives for an input of this shape."""

    @abstractmethod
    def values_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """For each output coordinate, an interval that contains it for inputs (N, *shape) in [lower, upper]."""

    @abstractmethod
    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """Bound on the error of torch's computation in `dtype`; None if nothing is known."""


class Computed(Opaque):
    """A map whose values are computed here."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The map applied to a batch (N, *shape)."""

    def out_shape(self, shape: Shape) -> Shape:
        return tuple(self(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])


def rounding_of_sums(length: int, dtype: torch.dtype) -> Rounding | None:
    """A few units for elementary functions and the roundings of a sum of `length` terms, in float64 only."""
    if dtype != torch.float64:
        return None
    return Rounding((FUNCTION_UNITS + length) * UNIT_ROUNDOFF[dtype], (2 + length) * least(dtype))


class _Comparing(Computed):
    """Maps that are increasing in every coordinate and computed by comparisons alone; nonexpansive by default."""

    kind = "nonlinear"
    linf = 1.0
    sorts: GroupSort | None = None
    bound: Bound = Bound(0.0, 1.0, "closed form")

    def values_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Its values at the two ends."""
        return self(lower), self(upper)

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """None is made."""
        return Rounding(0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Sort(_Comparing):
    """The values along one unbatched axis in order; the first `count` of them unless that is None (topk).

    groups: the same sort as a sort of channels of the map's own input, if simplification found this form.
    """

    along: int
    descending: bool = False
    count: int | None = None
    sorts: GroupSort | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.sorts is not None:
            return out_of_groups(in_groups(x, self.sorts).sort(dim=2, descending=self.descending).values, self.sorts)
        values = x.sort(dim=self.along + 1, descending=self.descending).values
        return values if self.count is None else values.narrow(self.along + 1, 0, self.count)


@dataclass(frozen=True, eq=False)
class Extremum(_Comparing):
    """The largest or smallest value along unbatched axes."""

    axes: tuple[int, ...]
    largest: bool
    keepdim: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        reduce = torch.amax if self.largest else torch.amin
        return reduce(x, dim=[axis + 1 for axis in self.axes], keepdim=self.keepdim)


@dataclass(frozen=True, eq=False)
class Running(_Comparing):
    """The largest or smallest value so far along one unbatched axis of `length` values.

    Every output is nonexpansive in linf, hence at most the largest difference of an input: sqrt(length) in l2.
    """

    along: int
    length: int
    largest: bool

    @property
    def bound(self) -> Bound:  # type: ignore[override]
        """sqrt(length), reached where the first value is the largest."""
        return Bound(0.0, rounded_up(math.sqrt(self.length), 1) if self.length > 1 else 1.0, "closed form")

    def __call__(self, x: Tensor) -> Tensor:
        running = torch.cummax if self.largest else torch.cummin
        return running(x, self.along + 1).values


@dataclass(frozen=True, eq=False)
class MaxPool(_Comparing):
    """The largest value in every window, window by window along each of the last axes.

    windows: for each of the last axes, the pixels (out, taps) of its windows, -1 for padding, which is never the
    maximum. Each window is nonexpansive, and the square of a pixel counts once for each window that contains it.
    """

    windows: tuple[Tensor, ...]
    kind = "pooling"

    @cached_property
    def bound(self) -> Bound:  # type: ignore[override]
        """sqrt(the largest number of windows that contain the same pixel)."""
        overlap = math.prod(int(windows_per_pixel(pixels).max()) for pixels in self.windows)
        return Bound(0.0, rounded_up(math.sqrt(overlap), 1) if overlap != 1 else 1.0, "windows per pixel")

    def __call__(self, x: Tensor) -> Tensor:
        for axis, pixels in enumerate(self.windows, start=x.ndim - len(self.windows)):
            pad = x.new_full((*x.shape[:axis], 1, *x.shape[axis + 1 :]), -math.inf)
            taken = torch.cat([x, pad], dim=axis).index_select(
                axis, pixels.to(x.device).flatten() % (x.shape[axis] + 1)
            )
            x = taken.reshape(*x.shape[:axis], *pixels.shape, *x.shape[axis + 1 :]).amax(axis + 1)
        return x


def windows_per_pixel(pixels: Tensor, side: int = 1) -> Tensor:
    """(side,) or longer: the number of windows (out, taps) that contain each pixel, each window counted once."""
    members = torch.cat([torch.unique(window[window >= 0]) for window in pixels])
    return torch.bincount(members, minlength=side)


@dataclass(frozen=True, eq=False)
class Softmax(Opaque):
    """softmax along one unbatched axis of `length` values.

    Its Jacobian diag(p) - p p^T is the covariance of one draw from p, so v^T J v = Var_p(v) <= (max v - min v)^2 / 4 <=
    |v|^2 / 2, and its row sums are 2 p_i (1 - p_i) <= 1/2.
    """

    along: int
    length: int
    kind = "nonlinear"
    linf = 0.5
    sorts = None
    bound = Bound(0.0, 0.5, "closed form")

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def values_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs lie in [0, 1]; each is smallest if its input is small and all others are large."""
        return torch.zeros_like(lower), torch.ones_like(upper)

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """A few units for the exponentials, and the roundings of their sum."""
        return rounding_of_sums(self.length, dtype)


@dataclass(frozen=True, eq=False)
class LogSumExp(Computed):
    """log of the sum of exponentials along unbatched axes with `length` values in total.

    Its gradient is a distribution, of norm at most 1 in l2 and l1.
    """

    axes: tuple[int, ...]
    length: int
    keepdim: bool = False
    kind = "nonlinear"
    linf = 1.0
    sorts = None
    bound = Bound(0.0, 1.0, "closed form")

    def __call__(self, x: Tensor) -> Tensor:
        return torch.logsumexp(x, dim=[axis + 1 for axis in self.axes], keepdim=self.keepdim)

    def values_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Its values at the two ends: it is increasing in every coordinate."""
        low, high = self(lower), self(upper)
        slack = WIDENING * self.length * (1 + torch.maximum(low.abs(), high.abs()))
        return low - slack, high + slack

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """A few units for the exponentials, and the roundings of their sum."""
        return rounding_of_sums(self.length, dtype)


@dataclass(frozen=True, eq=False)
class LogSoftmax(Computed):
    """x - log sum exp x along one unbatched axis of n = `length` values, with the softmax p.

    Its Jacobian J = I - 1 p^T is a projection, since p sums to 1, and so is 1 p^T; the two complement each other, so
    their norms agree if n > 1: |J| = |1 p^T| = sqrt(n) |p| < sqrt(n), approached as p tends to one class. The absolute
    row sums of J are 2 (1 - p_i) < 2, approached as well. For n = 1 it is 0.
    """

    along: int
    length: int
    kind = "nonlinear"
    sorts = None

    @property
    def bound(self) -> Bound:
        """sqrt(n)."""
        return Bound(0.0, rounded_up(math.sqrt(self.length), 1) if self.length > 1 else 0.0, "closed form")

    @property
    def linf(self) -> float:
        """2."""
        return 2.0 if self.length > 1 else 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return torch.log_softmax(x, dim=self.along + 1)

    def values_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The values at one end less the largest, or smallest, logarithm; never positive."""
        total = LogSumExp((self.along,), self.length, keepdim=True)
        low, high = total.values_on(lower, upper)
        slack = WIDENING * torch.maximum(lower.abs(), upper.abs())
        return lower - high - slack, (upper - low + slack).clamp_max(0)

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """A few units for the exponentials, the logarithm and the difference, and the roundings of the sum."""
        return rounding_of_sums(self.length, dtype)


class _Stated(Opaque):
    """A module whose statement is trusted; the shape is the one found during capture."""

    kind = "stated"

    def values_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The whole line: nothing is stated about its values."""
        shape = (len(lower), *self.out_shape(tuple(lower.shape[1:])))
        return lower.new_full(shape, -math.inf), lower.new_full(shape, math.inf)


@dataclass(frozen=True, eq=False)
class Stated(_Stated):
    """A module that states its own bound."""

    word: Bound
    met_shape: Shape
    linf = math.inf
    sorts = None

    @property
    def bound(self) -> Bound:
        return self.word

    def out_shape(self, shape: Shape) -> Shape:
        return self.met_shape

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """An allowance in float64 only, with a root of what underflows."""
        return Rounding(STATED_RELATIVE, math.sqrt(least(dtype))) if dtype == torch.float64 else None


@dataclass(frozen=True, eq=False)
class StatedSort(_Stated):
    """A module that states that it sorts groups of channels; checked, and computed by comparisons alone."""

    groups: GroupSort
    linf = 1.0
    bound = Bound(0.0, 1.0, "sort")

    @property
    def sorts(self) -> GroupSort:
        return self.groups

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def values_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The hull of each group: every value stays within its group, in an unknown order."""
        low, high = (in_groups(end, self.groups) for end in (lower, upper))
        ends = low.amin(2, keepdim=True).expand_as(low), high.amax(2, keepdim=True).expand_as(high)
        return out_of_groups(ends[0], self.groups), out_of_groups(ends[1], self.groups)

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """None is made."""
        return Rounding(0.0, 0.0)
