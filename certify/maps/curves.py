"""Functions without a largest slope, bounded near an image or as part of others: squares, roots, exp, logarithms."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.maps.activation import WIDENING, Curve


class Square(Curve):
    """x^2."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.square()

    def derivative(self, x: Tensor) -> Tensor:
        return 2 * x

    def bend(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Convex."""
        return torch.ones_like(lower)


class Reciprocal(Curve):
    """1 / x, on either side of 0."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.reciprocal()

    def derivative(self, x: Tensor) -> Tensor:
        return -x.square().reciprocal()

    def bend(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Convex on the right, concave on the left."""
        return (lower > 0).to(lower) - (upper < 0).to(lower)


@dataclass(frozen=True, eq=False)
class Power(Curve):
    """x^exponent on x > 0, and at 0 where the exponent is positive."""

    exponent: float

    def __call__(self, x: Tensor) -> Tensor:
        return x.pow(self.exponent)

    def derivative(self, x: Tensor) -> Tensor:
        return self.exponent * x.pow(self.exponent - 1)

    def bend(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Concave for exponents between 0 and 1, else convex."""
        defined = lower >= 0 if self.exponent > 0 else lower > 0
        return defined.to(lower) * (-1.0 if 0 < self.exponent < 1 else 1.0)


class Exp(Curve):
    """exp(x), which has no Lipschitz constant but may be part of a function that has one."""

    slopes = (0.0, math.inf)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def bend(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Convex."""
        return torch.ones_like(lower)

    def slopes_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """exp at the two ends."""
        return torch.exp(lower) * (1 - WIDENING), torch.exp(upper) * (1 + WIDENING) + math.ulp(0.0)

    def far_moment(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """c exp(-c) on the left."""
        left = torch.where(distance >= 2, distance * torch.exp(-distance) * (1 + 1e-12), math.inf)
        return left, torch.full_like(distance, math.inf)


class Log(Curve):
    """log(x) on x > 0."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.log()

    def derivative(self, x: Tensor) -> Tensor:
        return x.reciprocal()

    def bend(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Concave."""
        return -(lower > 0).to(lower)
