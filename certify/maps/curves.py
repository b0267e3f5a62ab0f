"""Functions that are bounded near an image only: squares, roots, reciprocals, logarithms."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.maps.activation import Curve


@dataclass(frozen=True, eq=False)
class Square(Curve):
    """x^2."""

    def __call__(self, x: Tensor) -> Tensor:
        """x^2."""
        return x.square()

    def derivative(self, x: Tensor) -> Tensor:
        """2 x."""
        return 2 * x

    def bend(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Convex."""
        return torch.ones_like(lower)


@dataclass(frozen=True, eq=False)
class Reciprocal(Curve):
    """1 / x, on either side of 0."""

    def __call__(self, x: Tensor) -> Tensor:
        """1 / x."""
        return x.reciprocal()

    def derivative(self, x: Tensor) -> Tensor:
        """-1 / x^2."""
        return -x.square().reciprocal()

    def bend(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Convex on the right, concave on the left."""
        return (lower > 0).to(lower) - (upper < 0).to(lower)


@dataclass(frozen=True, eq=False)
class Power(Curve):
    """x^exponent on x > 0, and at 0 where the exponent is positive."""

    exponent: float

    def __call__(self, x: Tensor) -> Tensor:
        """x^exponent."""
        return x.pow(self.exponent)

    def derivative(self, x: Tensor) -> Tensor:
        """exponent x^(exponent - 1)."""
        return self.exponent * x.pow(self.exponent - 1)

    def bend(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Concave for exponents between 0 and 1, else convex."""
        defined = lower >= 0 if self.exponent > 0 else lower > 0
        return defined.to(lower) * (-1.0 if 0 < self.exponent < 1 else 1.0)


@dataclass(frozen=True, eq=False)
class Log(Curve):
    """log(x) on x > 0."""

    def __call__(self, x: Tensor) -> Tensor:
        """log(x)."""
        return x.log()

    def derivative(self, x: Tensor) -> Tensor:
        """1 / x."""
        return x.reciprocal()

    def bend(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Concave."""
        return -(lower > 0).to(lower)
