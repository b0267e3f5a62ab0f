"""The certifier's representation of activations: scalar functions with the properties needed for bounds.

A kind is a frozen dataclass that defines all abstract members; otherwise it cannot be instantiated. Parameters (slopes,
limits) are numbers, or tensors that broadcast to the unbatched shape of the value without enlarging it; `parameters`
lists them, so that this can be checked when a network is built.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.proof.rounding import Rounding, few_units

Parameter = float | Tensor

# Beyond this distance no derivative of a smooth kind changes, and none of them overflows.
FAR = 1e100
# Bound on the error of computed derivatives and values, relative to the steepest slope and to their operands.
WIDENING = 1e-13
# Above everything that is lost to underflow.
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Activation(ABC):
    """A function of one real number, applied to every coordinate of a value."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The function applied to a batch (N, *shape) or to one sample (*shape), in float64."""

    @property
    @abstractmethod
    def slopes(self) -> tuple[float, float]:
        """An interval that contains every difference quotient at every coordinate; infinite if there is none."""

    @abstractmethod
    def slopes_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """For each coordinate, an interval that contains every difference quotient between points of [lower, upper].

        lower, upper: (*shape) or (N, *shape), lower <= upper, infinite ends allowed.
        """

    @abstractmethod
    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """Bound on the error of torch's computation in `dtype`; None if nothing is known."""

    @property
    @abstractmethod
    def jump(self) -> float:
        """Largest distance, in exact arithmetic, of torch's operation from this function (a tail that is cut off)."""

    @property
    @abstractmethod
    def parameters(self) -> tuple[Parameter, ...]:
        """All parameters that may differ between coordinates."""

    def far_moment(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Upper bounds on |y f'(y)| for all y <= -distance, and for all y >= distance; infinite if nothing is known."""
        unknown = torch.full_like(distance, math.inf)
        return unknown, unknown

    @property
    def constant(self) -> float:
        """The Lipschitz constant, the same in l2 and linf."""
        return max(abs(self.slopes[0]), abs(self.slopes[1]))

    def values_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """For each coordinate, an interval that contains the values of the function on [lower, upper], which must be
        finite.

        With slopes in [s, t], f lies above both f(lower) + s (x - lower) and f(upper) - t (upper - x); where s < 0 < t
        the larger of the two is smallest where they meet.
        """
        left, right = self(lower), self(upper)
        low, high = self.slopes_on(lower, upper)
        width = upper - lower
        turning = (low < 0) & (high > 0)
        span = torch.where(turning, high - low, torch.ones_like(high))
        bottom = torch.where(turning, (high * left - low * right + low * high * width) / span, left.minimum(right))
        top = torch.where(turning, (high * right - low * left - low * high * width) / span, left.maximum(right))
        size = torch.maximum(torch.maximum(left.abs(), right.abs()), torch.maximum(low.abs(), high.abs()) * width)
        slack = WIDENING * size + self.jump
        if (own := self.rounding(torch.float64)) is None:
            return torch.full_like(bottom, -math.inf), torch.full_like(top, math.inf)
        far = torch.maximum(lower.abs(), upper.abs())
        slack = slack + own.relative * (self.constant * far + torch.maximum(left.abs(), right.abs())) + own.lost
        return torch.where(far > own.reach, -math.inf, bottom - slack), torch.where(
            far > own.reach, math.inf, top + slack
        )


class PiecewiseLinear(Activation):
    """A continuous piecewise linear function."""

    jump = 0.0

    @property
    @abstractmethod
    def kinks(self) -> tuple[Parameter, ...]:
        """The points between the pieces, in ascending order (infinite ones are never reached)."""

    @property
    @abstractmethod
    def pieces(self) -> tuple[Parameter, ...]:
        """The slopes from left to right, one more than there are kinks."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Kinks and slopes."""
        return (*self.kinks, *self.pieces)

    @property
    def slopes(self) -> tuple[float, float]:
        """The smallest and the largest slope of all pieces and coordinates."""
        ends = [(float(piece.min()), float(piece.max())) if isinstance(piece, Tensor) else (piece, piece)
                for piece in self.pieces]  # fmt: skip
        return min(low for low, _ in ends), max(high for _, high in ends)

    def slopes_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The hull of the slopes of the nonempty pieces that [lower, upper] intersects in more than an end point."""
        starts: tuple[Parameter, ...] = (-math.inf, *self.kinks)
        ends: tuple[Parameter, ...] = (*self.kinks, math.inf)
        point = lower == upper
        low, high = torch.full_like(lower, math.inf), torch.full_like(lower, -math.inf)
        for start, end, slope in zip(starts, ends, self.pieces, strict=True):
            met = ((lower < end) & (upper > start)) | (point & (lower <= end) & (upper >= start))
            met = met & torch.as_tensor(start < end, device=met.device)
            value = torch.as_tensor(slope, dtype=lower.dtype, device=lower.device)
            low = torch.where(met, torch.minimum(low, value), low)
            high = torch.where(met, torch.maximum(high, value), high)
        return low, high


class Smooth(Activation):
    """A function whose derivative is known and monotone between the points in `turns`."""

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """The derivative in float64, accurate to WIDENING times the steepest slope."""

    @property
    @abstractmethod
    def turns(self) -> tuple[tuple[float, float, float], ...]:
        """Intervals [from, to] with a local extremum or a jump of the derivative, and its value rounded outwards."""

    products: float = 1.0  # whose loss by underflow may add up in a value
    fades: bool = False  # whether the derivative is even and |y f'(y)| decreases for |y| >= 2

    @property
    def jump(self) -> float:
        """0, unless a kind overrides it."""
        return 0.0

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """None: the function is the same at every coordinate."""
        return ()

    def far_moment(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """|y f'(y)| at the distance, if it decreases from there on."""
        if not self.fades:
            return super().far_moment(distance)
        near = distance.clamp_max(FAR)
        value = near * (self.derivative(near) + math.ulp(0.0)) * (1 + 1e-12)
        both = torch.where(distance >= 2, value, math.inf)
        return both, both

    def slopes_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative at the ends and at the turns in between, widened by its computation error."""
        ends = [self.derivative(end.clamp(-FAR, FAR)) for end in (lower, upper)]
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        for start, stop, slope in self.turns:
            met = (lower <= stop) & (upper >= start)
            low = torch.where(met, low.clamp_max(slope), low)
            high = torch.where(met, high.clamp_min(slope), high)
        slack = WIDENING * self.constant
        return (low - slack).clamp(*self.slopes), (high + slack).clamp(*self.slopes)

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """A few units, by assumption."""
        return few_units(dtype, lost=self.products)


class Curve(Activation):
    """A function of no bounded slope, convex or concave on every interval on which it has bounds."""

    slopes = (-math.inf, math.inf)
    jump = 0.0
    parameters = ()

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """The derivative in float64, accurate to a few units relative to itself."""

    @abstractmethod
    def bend(self, lower: Tensor, upper: Tensor) -> Tensor:
        """1 where the function is convex on [lower, upper], -1 where it is concave, 0 where it has no bounds there."""

    def slopes_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative at the ends, between which it is monotone; everything where it has no bounds."""
        ends = [self.derivative(end) for end in (lower, upper)]
        known = (self.bend(lower, upper) != 0) & ~ends[0].isnan() & ~ends[1].isnan()
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        least, most = low - WIDENING * low.abs() - TINY, high + WIDENING * high.abs() + TINY
        low, high = torch.where(low >= 0, least.clamp_min(0), least), torch.where(high <= 0, most.clamp_max(0), most)
        return torch.where(known, low, -math.inf), torch.where(known, high, math.inf)

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """A few units in float64, relative to |f(x)| alone."""
        return few_units(dtype) if dtype == torch.float64 else None


def broadcast_size(parameters: tuple[Parameter, ...]) -> tuple[int, ...]:
    """The common broadcast shape of the parameters; () for numbers only."""
    shapes = [tuple(value.shape) for value in parameters if isinstance(value, Tensor)]
    return tuple(torch.broadcast_shapes(*shapes)) if shapes else ()  # type: ignore[no-untyped-call]
