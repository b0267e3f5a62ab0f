"""Scalar expressions as activations: steepest slopes by bisection of the real line, and a check for jumps."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robustres.certify.maps.activation import Activation
from robustres.certify.maps.interval import Interval
from robustres.certify.maps.scalar_expression import Applied, Expression, Inverse, Times, around
from robustres.certify.proof.rounding import Rounding
from robustres.numerics import UNIT_ROUNDOFF, rounded_up

CELLS = 48  # bisections of the cells in which the steepest slope may lie
TOLERANCE = 1e-6  # of the slopes, absolute and relative
STEEPEST = 1e200  # slopes from which a function counts as one without a bound
PARTS = 32  # of an interval on which slopes are requested
TOGETHER = 2**20  # coordinates of all parts that are enclosed at once
FARTHEST = 2.0**20
# Of the cells on which rounding is bounded, and the error at which that ends, relative to constant and argument.
EDGES, USELESS = sorted({704.0, *(2.0**k for k in (*range(-8, 12), *range(12, 41, 2)))}), 1e-3
# Tolerated jump due to rounded constants: a relative change of all values of which the function is computed.
GAP = 8 * UNIT_ROUNDOFF[torch.float64]


@dataclass(frozen=True, eq=False)
class Written(Activation):
    """The activation given by an expression. Raises ValueError if it jumps."""

    expression: Expression
    parameters = ()

    def __post_init__(self) -> None:
        _ = self.gaps

    @cached_property
    def gaps(self) -> float:
        """Largest difference of the values just before, at and just after the points where conditions change.

        They agree up to the rounding of the network's constants. Raises ValueError if they do not.
        """
        places, total = sorted(set(self.expression.breaks())), 0.0
        for k, place in enumerate(places):
            before = (places[k - 1] + place) / 2 if k else place - 1
            after = (places[k + 1] + place) / 2 if k + 1 < len(places) else place + 1
            x = torch.tensor([float(place)], dtype=torch.float64)
            values = torch.cat([self.expression.at(x, decide) for decide in (before, place, after)])
            down, up = (torch.tensor([end], dtype=torch.float64) for end in around(place))
            allowed = GAP * _moved(self.expression, Interval(down, up))
            if not float(values.max() - values.min()) <= allowed < math.inf:
                raise ValueError(f"it jumps between {values.min():.6g} and {values.max():.6g} at {float(place):.6g}")
            total += 2 * allowed
        return total

    def __call__(self, x: Tensor) -> Tensor:
        return self.expression.at(x, x)

    @cached_property
    def slopes(self) -> tuple[float, float]:
        """The slopes up to TOLERANCE; infinite if no enclosure of the derivative is finite."""
        return -self._steepest(-1.0), self._steepest(1.0)

    def _steepest(self, sign: float) -> float:
        """Upper bound on sign f'."""
        powers = [2.0**k for k in range(-60, 13)]
        edges = sorted({-math.inf, *(-power for power in powers), 0.0, *powers, math.inf})
        edges = sorted({*edges, *(end for place in self.expression.breaks() for end in around(place))})
        cells = Interval(torch.tensor(edges[:-1], dtype=torch.float64), torch.tensor(edges[1:], dtype=torch.float64))
        attained, settled, size = -math.inf, -math.inf, 0.0  # size: of slopes of either sign
        for _ in range(CELLS):
            middle = torch.where(
                torch.isfinite(cells.low) & torch.isfinite(cells.high),
                (cells.low + cells.high) / 2,
                torch.where(torch.isfinite(cells.low), 2 * cells.low, 2 * cells.high),
            )
            ends = Interval(torch.cat([cells.low, middle]), torch.cat([cells.high, middle]))
            slope = self.expression.jet(ends).slope
            low, high = (slope.low, slope.high) if sign > 0 else (-slope.high, -slope.low)
            upper, point = high[: len(middle)], low[len(middle) :]
            attained = max(
                attained, float(point[point.isfinite()].max()) if bool(point.isfinite().any()) else -math.inf
            )
            size = max(size, float(torch.maximum(low, -high)[len(middle) :].nan_to_num(0, 0, 0).max()))
            allowed = attained + TOLERANCE * (1 + max(size, abs(attained))) if math.isfinite(attained) else -math.inf
            small = (middle == cells.low) | (middle == cells.high) | (middle.abs() > FARTHEST)
            done = (upper <= allowed) | small
            settled = max(settled, float(upper[done].max()) if bool(done.any()) else -math.inf)
            if bool(done.all()) or settled == math.inf:
                return settled
            if attained > STEEPEST:
                return math.inf
            left, right, middle = cells.low[~done], cells.high[~done], middle[~done]
            cells = Interval(torch.cat([left, middle]), torch.cat([middle, right]))
            if len(cells.low) > 200_000:
                break
        slope = self.expression.jet(cells).slope
        return max(settled, float((slope.high if sign > 0 else -slope.low).max()))

    def slopes_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The hull of the derivative on parts of the interval; all slopes if an end is infinite."""
        finite = torch.isfinite(lower) & torch.isfinite(upper)
        start, stop = torch.where(finite, lower, 0.0), torch.where(finite, upper, 0.0)
        low, high = torch.full_like(lower, math.inf), torch.full_like(lower, -math.inf)
        together = max(1, min(PARTS, TOGETHER // max(1, lower.numel())))
        for first in range(0, PARTS, together):
            part = torch.arange(first, min(first + together, PARTS)).to(lower).reshape(-1, *[1] * lower.ndim)
            left = torch.minimum(start + (stop - start) * (part / PARTS), stop)
            right = torch.where(
                part == PARTS - 1, stop, torch.minimum(start + (stop - start) * ((part + 1) / PARTS), stop)
            )
            flat, steep = self.slopes_at_once(left, right)
            low, high = torch.minimum(low, flat.amin(0)), torch.maximum(high, steep.amax(0))
        least, most = self.slopes
        return torch.where(finite, low, least), torch.where(finite, high, most)

    def slopes_at_once(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """As `slopes_on`, of finite intervals, without cutting them into parts."""
        slope, (least, most) = self.expression.jet(Interval(lower, upper)).slope, self.slopes
        return slope.low.clamp(least, most), slope.high.clamp(least, most)

    @property
    def jump(self) -> float:
        """The largest gap that is tolerated."""
        return self.gaps

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """What every operation adds, enlarged by those behind it; in float64 only."""
        return self._rounding if dtype == torch.float64 else None

    @cached_property
    def _rounding(self) -> Rounding | None:
        edges = [-edge for edge in EDGES[::-1]] + [0.0, *EDGES]
        inside = {end for place in self.expression.breaks() for end in around(place) if abs(end) < EDGES[-1]}
        low, high = torch.tensor(sorted({*edges, *inside}), dtype=torch.float64).unfold(0, 2, 1).unbind(1)
        error, near = self.expression.error(Interval(low, high)), torch.maximum(low, -high).clamp_min(0)
        useful = error <= USELESS * (1 + self.constant) * near.clamp_min(1)
        reach = float(torch.where(useful, EDGES[-1], near).min())
        error, near = (side[near < reach] for side in (error, near))
        if not reach > 1 or not math.isfinite(self.constant):
            return None
        lost = float(error[near < 1].max())
        relative = float((error / near)[near >= 1].max())
        if not self.constant:
            return Rounding(0.0, float(error.max()), reach)
        return Rounding(rounded_up(relative / self.constant, 4), lost, reach)


def _moved(expression: Expression, cell: Interval, weight: float = 1.0) -> float:
    """How much the value moves, to first order, per relative change of all constants, intermediate values and places.

    weight: the same per change of this part.
    """
    jet = expression.jet(cell)
    weights = [weight] * len(expression.parts)
    if isinstance(expression, Times):
        left, right = (part.jet(cell).value for part in expression.parts)
        weights = [weight * float(right.largest()), weight * float(left.largest())]
    elif isinstance(expression, Inverse):
        weights = [weight * float(jet.value.largest()) ** 2]
    elif isinstance(expression, Applied):
        inner = expression.inner.jet(cell).value
        slopes = Interval(*expression.function.slopes_on(inner.low, inner.high))
        weights = [weight * float(slopes.largest())]
    own = weight * (float(jet.value.largest()) + float(jet.moment.largest())) if weight else 0.0
    return own + math.fsum(
        _moved(part, cell, each) for part, each in zip(expression.parts, weights, strict=True) if each
    )
