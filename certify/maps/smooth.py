"""Smooth activations: derivatives, extreme slopes and their locations.

The extreme slopes of GELU, SiLU and Mish are at roots of their second derivatives and are rounded outwards; the tests
recompute them in high precision.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from robustres.certify.maps.activation import Activation, Smooth
from robustres.certify.proof.rounding import FUNCTION_UNITS, Rounding, few_units, least
from robustres.numerics import UNIT_ROUNDOFF

Slopes = tuple[float, float]
Turns = tuple[tuple[float, float, float], ...]

# Phi(sqrt 2) + sqrt 2 phi(sqrt 2), attained at x = sqrt 2; by symmetry the smallest slope is 1 minus it.
GELU: Slopes = (-0.128904145185155, 1.128904145185155)
GELU_TANH: Slopes = (-0.128993068658772, 1.128993068658772)
SILU: Slopes = (-0.099839320128867, 1.099839320128867)
MISH: Slopes = (-0.112526122389463, 1.088498161251728)
# Where they are attained.
GELU_TANH_PLACE = 1.4185040
SILU_PLACE = 2.3993573
MISH_PLACES = (-2.2563764, 1.4905712)


def _hump(place: float, slope: float) -> tuple[float, float, float]:
    """An extremum whose location is known to 1e-6."""
    return place - 1e-6, place + 1e-6, slope


class Sigmoid(Smooth):
    """1 / (1 + exp(-x))."""

    fades = True
    turns = ((0.0, 0.0, 0.25),)
    slopes = (0.0, 0.25)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(-x)


class Tanh(Smooth):
    """tanh(x)."""

    fades = True
    turns = ((0.0, 0.0, 1.0),)
    slopes = (0.0, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def derivative(self, x: Tensor) -> Tensor:
        return 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)


class Erf(Smooth):
    """The error function."""

    fades = True
    steepest = math.nextafter(2 / math.sqrt(math.pi), 2)
    turns = ((0.0, 0.0, steepest),)
    slopes = (0.0, steepest)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.erf(x)

    def derivative(self, x: Tensor) -> Tensor:
        return 2 / math.sqrt(math.pi) * torch.exp(-x.square())


class Erfc(Smooth):
    """1 - erf(x)."""

    turns = ((0.0, 0.0, -Erf.steepest),)
    slopes = (-Erf.steepest, 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.erfc(x)

    def derivative(self, x: Tensor) -> Tensor:
        return -2 / math.sqrt(math.pi) * torch.exp(-x.square())


class Atan(Smooth):
    """arctan(x)."""

    fades = True
    turns = ((0.0, 0.0, 1.0),)
    slopes = (0.0, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.atan(x)

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / (1 + x.square())


class Asinh(Smooth):
    """arsinh(x)."""

    turns = ((0.0, 0.0, 1.0),)
    slopes = (0.0, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.asinh(x)

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / torch.hypot(x, torch.ones_like(x))


@dataclass(frozen=True, eq=False)
class RootOfSquare(Smooth):
    """sqrt(x^2 + shift), for a shift of 0 or more: the length of (x, sqrt(shift))."""

    shift: float
    turns = ()
    slopes = (-1.0, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.hypot(x, torch.full_like(x, math.sqrt(self.shift)))

    def derivative(self, x: Tensor) -> Tensor:
        """It increases, to -1 and 1 at infinity."""
        return torch.where(x == 0, 0.0, x / self(x))

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """The network adds up squares, which may be lost or too large."""
        reach = math.sqrt(torch.finfo(dtype).max) / 4
        return Rounding(FUNCTION_UNITS * UNIT_ROUNDOFF[dtype], math.sqrt(least(dtype)), reach)


class LogSigmoid(Smooth):
    """log(sigmoid(x))."""

    turns = ()
    slopes = (0.0, 1.0)

    def __call__(self, x: Tensor) -> Tensor:
        return F.logsigmoid(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(-x)


@dataclass(frozen=True, eq=False)
class Gelu(Smooth):
    """x Phi(x), exact or with the tanh approximation."""

    approximate: Literal["none", "tanh"] = "none"

    @property
    def slopes(self) -> Slopes:
        """Attained near +-sqrt(2)."""
        return GELU if self.approximate == "none" else GELU_TANH

    @property
    def turns(self) -> Turns:
        """The two extrema; the tanh form has no others."""
        place = math.sqrt(2) if self.approximate == "none" else GELU_TANH_PLACE
        return _hump(-place, self.slopes[0]), _hump(place, self.slopes[1])

    def __call__(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)

    def derivative(self, x: Tensor) -> Tensor:
        if self.approximate == "none":
            share: Tensor = torch.special.ndtr(x)
            return share + x * torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        steepness = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x.square())
        share, bell = torch.sigmoid(2 * inner), torch.sigmoid(-2 * inner)
        return share + 2 * x * share * bell * steepness


class Silu(Smooth):
    """x sigmoid(x)."""

    slopes = SILU
    turns = _hump(-SILU_PLACE, SILU[0]), _hump(SILU_PLACE, SILU[1])

    def __call__(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def derivative(self, x: Tensor) -> Tensor:
        share, rest = torch.sigmoid(x), torch.sigmoid(-x)
        return share + x * share * rest


class Mish(Smooth):
    """x tanh(softplus(x))."""

    slopes = MISH
    turns = _hump(MISH_PLACES[0], MISH[0]), _hump(MISH_PLACES[1], MISH[1])

    def __call__(self, x: Tensor) -> Tensor:
        return F.mish(x)

    def derivative(self, x: Tensor) -> Tensor:
        soft = torch.logaddexp(x, torch.zeros_like(x))
        bell = 4 * torch.sigmoid(2 * soft) * torch.sigmoid(-2 * soft)
        return torch.tanh(soft) + x * bell * torch.sigmoid(x)


@dataclass(frozen=True, eq=False)
class Softplus(Smooth):
    """log(1 + exp(beta x)) / beta, which torch replaces by x itself where beta x exceeds the threshold.

    There it jumps by log(1 + exp(-threshold)) / beta. For torch's threshold of 20 or more this is below 1e-10 of the
    argument, which certificates treat like a rounding error; with a smaller threshold the function is not Lipschitz.
    """

    beta: float
    threshold: float
    turns = ()
    slopes = (0.0, 1.0)

    @property
    def products(self) -> float:  # type: ignore[override]
        """A loss before the division by beta is enlarged by it."""
        return 2 + 2 / self.beta

    @property
    def jump(self) -> float:
        """log(1 + exp(-threshold)) / beta, rounded up."""
        return 1.01 * math.exp(-self.threshold) / self.beta

    def __call__(self, x: Tensor) -> Tensor:
        """Without the replacement."""
        return torch.logaddexp(self.beta * x, torch.zeros_like(x)) / self.beta

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.beta * x)

    def far_moment(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """sigmoid(beta y) <= exp(-beta |y|) on the left; c exp(-beta c) decreases from 1 / beta on."""
        left = torch.where(self.beta * distance >= 2, distance * torch.exp(-self.beta * distance), math.inf)
        return left * (1 + 1e-12), torch.full_like(distance, math.inf)


@dataclass(frozen=True, eq=False)
class Elu(Smooth):
    """scale x on the right, alpha scale (exp(input_scale x) - 1) on the left; SELU and CELU are special cases."""

    alpha: float
    scale: float = 1.0
    input_scale: float = 1.0

    @property
    def products(self) -> float:  # type: ignore[override]
        """A loss of the exponential's argument or value is enlarged by the factors behind it."""
        return 2 + 2 * abs(self.scale) * (1 + abs(self.alpha))

    @property
    def _left(self) -> float:
        """The slope just left of 0, rounded outwards."""
        slope = self.alpha * self.scale * self.input_scale
        return slope + math.copysign(4 * math.ulp(slope), slope) if slope else 0.0

    @property
    def slopes(self) -> Slopes:
        """The hull of the left tail (0), the slope just left of 0, and the slope on the right."""
        return min(0.0, self._left, self.scale), max(0.0, self._left, self.scale)

    @property
    def turns(self) -> Turns:
        """The two slopes that meet at 0."""
        return (0.0, 0.0, self._left), (0.0, 0.0, self.scale)

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * (x.clamp_min(0) + self.alpha * torch.expm1(self.input_scale * x.clamp_max(0)))

    def derivative(self, x: Tensor) -> Tensor:
        left = self.alpha * self.scale * self.input_scale * torch.exp(self.input_scale * x.clamp_max(0))
        return torch.where(x > 0, self.scale, left)


class Hardswish(Smooth):
    """x min(max(x + 3, 0), 6) / 6."""

    slopes = (-0.5, 1.5)
    turns = ((-3.0, -3.0, 0.0), (-3.0, -3.0, -0.5), (3.0, 3.0, 1.5), (3.0, 3.0, 1.0))

    def __call__(self, x: Tensor) -> Tensor:
        return F.hardswish(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 3, 1.0, torch.where(x < -3, 0.0, (2 * x + 3) / 6))


class _Periodic(Activation):
    """A sine with its first maximum of the derivative at `crest`."""

    crest: float
    slopes = (-1.0, 1.0)
    jump = 0.0
    parameters = ()

    def slopes_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """cos(x - crest) at the ends, and 1 or -1 where a crest or a trough lies between."""
        near = (upper - lower < 6) & (lower.abs() < 1e6)
        start, stop = torch.where(near, lower, 0.0), torch.where(near, upper, 7.0)
        ends = [torch.cos(end - self.crest) for end in (start, stop)]
        low, high = torch.minimum(*ends) - 1e-9, torch.maximum(*ends) + 1e-9
        for place, slope in ((self.crest, 1.0), (self.crest + math.pi, -1.0)):
            turn = torch.ceil((start - place) / (2 * math.pi) - 1e-9) * (2 * math.pi) + place
            met = turn <= stop + 1e-8
            low, high = torch.where(met, low.clamp_max(slope), low), torch.where(met, high.clamp_min(slope), high)
        return low.clamp(-1, 1), high.clamp(-1, 1)

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """A few units, by assumption."""
        return few_units(dtype)


class Sin(_Periodic):
    """sin(x)."""

    crest = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Cos(_Periodic):
    """cos(x)."""

    crest = -math.pi / 2

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cos(x)
