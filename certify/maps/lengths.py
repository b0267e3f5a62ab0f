"""Norms of groups of values, and normalisation by them, with their Lipschitz constants."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from robustres.certify.maps.activation import WIDENING, Parameter
from robustres.certify.maps.linear_map import Shape
from robustres.certify.maps.nonlinear import Computed, Opaque, rounding_of_sums
from robustres.certify.maps.scalar_expression import Expression, Times, Variable
from robustres.certify.maps.written import Written
from robustres.certify.proof.bound import Bound
from robustres.certify.proof.rounding import Rounding
from robustres.numerics import rounded_up


@dataclass(frozen=True, eq=False)
class Length(Computed):
    """The norm of order 1, 2 or infinity of `length` values along unbatched axes.

    | |x| - |y| | <= |x - y| in the same norm, which is at most sqrt(n) (order 1) or 1 times the l2 norm, and at most n
    (order 1), sqrt(n) (order 2) or 1 times the linf norm.
    """

    axes: tuple[int, ...]
    length: int
    order: float = 2.0
    keepdim: bool = False
    kind = "nonlinear"
    sorts = None

    @property
    def bound(self) -> Bound:
        """sqrt(n) for order 1, else 1."""
        return Bound(0.0, rounded_up(math.sqrt(self.length), 1) if self.order == 1 else 1.0, "closed form")

    @property
    def linf(self) -> float:
        """n^(1 / order)."""
        return rounded_up(self.length ** (1 / self.order), 4) if self.length > 1 else 1.0

    def __call__(self, x: Tensor) -> Tensor:
        axes = [axis + 1 for axis in self.axes]
        answer: Tensor = torch.linalg.vector_norm(x, self.order, dim=axes, keepdim=self.keepdim)
        return answer

    def values_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Its values at the extreme absolute values: it is increasing in each of them."""
        low, high = self(torch.maximum(lower, -upper).clamp_min(0)), self(torch.maximum(-lower, upper))
        slack = WIDENING * self.length
        return low * (1 - slack), high * (1 + slack)

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """A few units for products and root, and the roundings of the sum; squares may be lost or too large."""
        own = rounding_of_sums(self.length, dtype)
        if own is None or self.order != 2:
            return own
        return replace(own, lost=math.sqrt(own.lost), reach=math.sqrt(torch.finfo(dtype).max) / 4)


@dataclass(frozen=True, eq=False)
class Normalisation(Opaque):
    """Layer, group, instance and RMS normalisation: each group of values, minus its mean if `centred`, divided by
    sqrt(its mean square + eps), times a factor gamma for each coordinate.

    eps > 0 makes it Lipschitz: let z = P x, where P is the projection that removes the mean (or the identity),
    s^2 = |z|^2/n + eps, y = z / s. Then dy = (P v)/s - z <z, v>/(n s^3), so the Jacobian is
    (I - z z^T/(n s^2)) P / s. The matrix in brackets is symmetric with eigenvalues 1 and 1 - |z|^2/(n s^2) = eps/s^2,
    all in (0, 1], hence the norm is at most 1/s <= 1/sqrt(eps), reached at z = 0. In linf the row sums of the bracket
    times P are at most (1 + max|z| |z|_1/(n s^2)) |P|_inf <= (1 + (1 + sqrt n)/2) 2, since max|z| |z|_1 <=
    |z|^2 (1 + sqrt n)/2, and at most sqrt n times the l2 norm.

    factor: gamma, a number or a tensor that broadcasts to the value. group: values in each group, one after the other.
    """

    eps: float
    factor: Parameter
    group: int
    centred: bool
    kind = "normalisation"
    sorts = None

    @property
    def scale(self) -> float:
        """max |gamma|."""
        return float(self.factor.abs().max()) if isinstance(self.factor, Tensor) else abs(self.factor)

    @property
    def bound(self) -> Bound:
        """max |gamma| / sqrt(eps)."""
        return Bound(0.0, rounded_up(self.scale / math.sqrt(self.eps), 3), "1 / sqrt(eps)")

    @property
    def linf(self) -> float:
        """The bound by the row sums above."""
        rows = (1 + (1 + math.sqrt(self.group)) / 2) * (2 if self.centred else 1)
        return rounded_up(self.bound.upper * min(rows, math.sqrt(self.group)), 6)

    def out_shape(self, shape: Shape) -> Shape:
        return shape

    def values_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The whole line, since shifts are not known here."""
        largest = math.inf
        return torch.full_like(lower, -largest), torch.full_like(upper, largest)

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """Mean, variance and quotient: every sum has `group` terms, cancellation is relative to |x| / sqrt(eps).

        A loss d in z changes z / s by d / sqrt(eps), one in s^2 by at most sqrt(n) d / (2 eps). The variance may be
        the mean square less the square of the mean, each relative to |x|^2 / n (torch: images stored channels last).
        """
        own = rounding_of_sums(self.group, dtype)
        if own is None:
            return None
        steep = 1 / math.sqrt(self.eps) + math.sqrt(self.group) / self.eps
        reach = math.sqrt(torch.finfo(dtype).max) / 4
        square = 2 * own.relative * self.scale / (math.sqrt(self.group) * self.eps) if self.centred else 0.0
        return Rounding(8 * own.relative, 2 * own.lost * (1 + self.scale * (1 + steep)), reach, square)


@dataclass(frozen=True, eq=False)
class Radial(Computed):
    """z s(|z|) for every group z of `length` values along unbatched axes, |z| its l2 norm.

    Let f(r) = r s(r). Along z the Jacobian is f'(r), across it s(r) = f(r) / r, which is a mean of f' over [0, r]. So
    its norm is at most the largest |f'|. In linf it is at most sqrt(n) times as large.

    factor: s, of the absolute value of its variable.
    """

    axes: tuple[int, ...]
    length: int
    factor: Expression
    kind = "normalisation"
    sorts = None

    @cached_property
    def profile(self) -> Written:
        """f. Raises ValueError if it jumps."""
        return Written(Times(Variable(), self.factor))

    @cached_property
    def bound(self) -> Bound:
        """The largest |f'|."""
        return Bound(0.0, self.profile.constant, "largest slope along and across")

    @property
    def linf(self) -> float:
        """sqrt(n) times the bound."""
        return rounded_up(math.sqrt(self.length) * self.bound.upper, 2)

    def _radius(self, x: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(x, dim=[axis + 1 for axis in self.axes], keepdim=True)
        return found

    def __call__(self, x: Tensor) -> Tensor:
        radius = self._radius(x)
        return x * self.factor.at(radius, radius)

    def values_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """No value is larger than |f| of the length."""
        farthest = self._radius(torch.maximum(lower.abs(), upper.abs())) * (1 + WIDENING * self.length)
        low, high = self.profile.values_on(torch.zeros_like(farthest), farthest)
        most = torch.maximum(low.abs(), high.abs()).expand_as(lower)
        return -most, most

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """That of f, and twice its slope times that of |z|, whose squares may be lost or too large."""
        sums, own = rounding_of_sums(self.length, dtype), self.profile.rounding(dtype)
        if sums is None or own is None:
            return None
        lost = own.lost + sums.lost + 2 * self.bound.upper * math.sqrt(sums.lost)
        reach = min(own.reach, math.sqrt(torch.finfo(dtype).max) / 4)
        return Rounding(own.relative + 4 * sums.relative, lost, reach)
