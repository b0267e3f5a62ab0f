"""Piecewise linear activations: computed by comparisons, and by one product if a slope is not 0 or +-1."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.maps.activation import Parameter, PiecewiseLinear
from robustres.certify.proof.rounding import Rounding, few_units, least
from robustres.numerics import UNIT_ROUNDOFF


class _Exact(PiecewiseLinear):
    """Computed by comparisons, copies and sign changes, without any rounding."""

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        return Rounding(0.0, 0.0)


class _OneProduct(PiecewiseLinear):
    """At most one sum and one product per coordinate; the parameter itself may be rounded to the data type."""

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        return Rounding(3 * UNIT_ROUNDOFF[dtype], least(dtype))


class Relu(_Exact):
    """max(x, 0)."""

    kinks = (0.0,)
    pieces = (0.0, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.relu(x)


@dataclass(frozen=True, eq=False)
class Clamp(_OneProduct):
    """min(max(x, low), high): relu6, hardtanh, clamp, the maximum or minimum of a value and a constant, threshold.

    low, high: numbers or tensors, infinite for no limit; if low > high, the value is `high` everywhere.
    """

    low: Parameter
    high: Parameter
    pieces = (0.0, 1.0, 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        bounds = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (self.low, self.high))
        return torch.clamp(x, *bounds)

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """None is made, unless a limit is rounded."""
        limits = [torch.as_tensor(limit, dtype=torch.float64) for limit in (self.low, self.high)]
        exact = all(torch.equal(limit, limit.to(dtype).to(torch.float64)) for limit in limits)
        return Rounding(0.0, 0.0) if exact else super().rounding(dtype)

    @property
    def kinks(self) -> tuple[Parameter, ...]:
        return (self.low, self.high)


class Abs(_Exact):
    """|x|."""

    kinks = (0.0,)
    pieces = (-1.0, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        return x.abs()


@dataclass(frozen=True, eq=False)
class LeakyRelu(_OneProduct):
    """x for x > 0, left x for x <= 0; `left` may differ between coordinates (PReLU)."""

    left: Parameter
    kinks = (0.0,)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.left * x)

    @property
    def pieces(self) -> tuple[Parameter, ...]:
        return (self.left, 1.0)


@dataclass(frozen=True, eq=False)
class Softshrink(_OneProduct):
    """x moved towards 0 by `cut` >= 0; 0 for |x| <= cut."""

    cut: float
    pieces = (1.0, 0.0, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        return x - x.clamp(-self.cut, self.cut)

    @property
    def kinks(self) -> tuple[Parameter, ...]:
        return (-self.cut, self.cut)


class Hardsigmoid(PiecewiseLinear):
    """min(max(x + 3, 0), 6) / 6."""

    kinks = (-3.0, 3.0)
    pieces = (0.0, math.nextafter(1 / 6, 1), 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.hardsigmoid(x)

    def slopes_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """As for all piecewise linear functions, with 1/6 rounded outwards."""
        low, high = super().slopes_on(lower, upper)
        return torch.where(low > 0, low * (1 - 2**-50), low), high

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """x + 3 is rounded relative to 3 + |x|, which is at most 18 (|x| / 6 + value)."""
        return few_units(dtype)
