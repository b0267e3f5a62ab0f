"""Piecewise linear activations: computed by comparisons, and by one product if a slope is not 0 or +-1."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.maps.activation import Parameter, PiecewiseLinear
from robustres.numerics import UNIT_ROUNDOFF


class _Exact(PiecewiseLinear):
    """Computed by comparisons, copies and sign changes, without any rounding."""

    def relative_error(self, dtype: torch.dtype) -> float | None:
        return 0.0


class _OneProduct(PiecewiseLinear):
    """One product, or one sum and one product, per coordinate; the parameter itself may be rounded to the data type."""

    def relative_error(self, dtype: torch.dtype) -> float | None:
        return 3 * UNIT_ROUNDOFF[dtype]


class Relu(_Exact):
    """max(x, 0)."""

    kinks = (0.0,)
    pieces = (0.0, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.relu(x)


@dataclass(frozen=True, eq=False)
class Clamp(_Exact):
    """min(max(x, low), high): relu6, hardtanh, clamp, the maximum or minimum of a value and a constant, threshold.

    low, high: numbers or tensors, infinite for no limit; if low > high, the value is `high` everywhere.
    """

    low: Parameter
    high: Parameter
    pieces = (0.0, 1.0, 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        bounds = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in (self.low, self.high))
        return torch.clamp(x, *bounds)

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

    def relative_error(self, dtype: torch.dtype) -> float | None:
        """x + 3 is rounded relative to 3 + |x|, which is at most 18 (|x| / 6 + value)."""
        return 64 * UNIT_ROUNDOFF[dtype]
