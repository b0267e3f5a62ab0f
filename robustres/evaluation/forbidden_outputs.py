"""From a formula to regions of inputs, each with the outputs that are forbidden there; all roundings go outwards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from robustres.certify.local.output_property import Forbidden
from robustres.certify.local.sets import Region
from robustres.errors import DataError
from robustres.evaluation.formula import Comparison, Formula

INPUTS = (
    "conditions on inputs must be bounds on single inputs, or one l2 ball: the sum of (x - centre)^2 with equal "
    "factors, at most eps^2"
)
UNBOUNDED = "every input of a property needs a lower and an upper bound, or a place in the sum of an l2 ball"


@dataclass(frozen=True, eq=False)
class Part:
    """region: of one sample (1, n), around all inputs of this part. cases: any of them is a violation."""

    region: Region
    cases: tuple[Forbidden, ...]


def parts_of(formula: Formula, inputs: int, outputs: int) -> tuple[Part, ...]:
    """The parts of all alternatives of the formula, one for all with the same inputs.

    A strict comparison counts as one that is not. DataError says what is not supported.
    """
    grouped: dict[tuple[int, ...], tuple[list[Comparison], list[Forbidden]]] = {}
    for case in formula.alternatives():
        if any(one.letters == {"X", "Y"} for one in case):
            raise DataError("a comparison must be about inputs or about outputs, not about both")
        about = [one for one in case if one.letters == {"X"}]
        others = [one for one in case if one.letters == {"Y"}]
        if not others:
            raise DataError("every alternative of a property needs a condition on the outputs")
        _, found = grouped.setdefault(tuple(map(id, about)), (about, []))
        found.append(_forbidden(others, outputs))
    regions = [(_region(about, inputs), tuple(cases)) for about, cases in grouped.values()]
    parts = tuple(Part(region, cases) for region, cases in regions if region is not None)
    if not parts:
        raise DataError("no input satisfies the property's conditions on inputs")
    return parts


def _forbidden(comparisons: Sequence[Comparison], outputs: int) -> Forbidden:
    rows, limits = torch.zeros(len(comparisons), outputs, dtype=torch.float64), []
    for row, one in zip(rows, comparisons, strict=True):
        factors = {variables: factor for variables, factor in one.polynomial.items() if variables}
        if any(len(variables) != 1 for variables in factors):
            raise DataError("conditions on outputs must be linear")
        scale = Fraction(math.lcm(*(f.denominator for f in factors.values())))
        scale /= math.gcd(*(int(f * scale) for f in factors.values()))
        if any(abs(factor * scale) > 2**53 for factor in factors.values()):
            raise DataError("the factors of outputs must be multiples of one number, each less than 2^53 times it")
        for ((_, place),), factor in factors.items():
            row[place] = float(factor * scale)
        limits.append(_up(-one.polynomial.get((), Fraction(0)) * scale))
    return Forbidden(rows, torch.tensor(limits, dtype=torch.float64))


def _region(comparisons: Sequence[Comparison], inputs: int) -> Region | None:
    """The smallest box or ball within a box that contains all inputs which satisfy the comparisons; None if empty."""
    lower: list[Fraction | None] = [None] * inputs
    upper: list[Fraction | None] = [None] * inputs
    balls = []
    for one in comparisons:
        if any(len(variables) == 2 for variables in one.polynomial):
            balls.append(one)
            continue
        terms = {variables: factor for variables, factor in one.polynomial.items() if variables}
        if len(terms) != 1:
            raise DataError(INPUTS)
        ((((_, place),), factor),) = terms.items()
        bound = -one.polynomial.get((), Fraction(0)) / factor
        side, tighter = (upper, min) if factor > 0 else (lower, max)
        known = side[place]
        side[place] = bound if known is None else tighter(known, bound)
    if any(low is not None and high is not None and low > high for low, high in zip(lower, upper, strict=True)):
        return None
    low = torch.tensor([[-math.inf if side is None else -_up(-side) for side in lower]], dtype=torch.float64)
    high = torch.tensor([[math.inf if side is None else _up(side) for side in upper]], dtype=torch.float64)
    if len(balls) > 1:
        raise DataError(INPUTS)
    if balls:
        return _ball(balls[0], low, high)
    if not bool(torch.isfinite(high - low).all()):
        raise DataError(UNBOUNDED)
    return Region.box(low, high)


def _ball(comparison: Comparison, low: Tensor, high: Tensor) -> Region | None:
    """factor sum (x_i - centre_i)^2 <= rest within the box; inputs outside the sum extend the ball by their widths.

    The centre moves to the nearest point of the box, which is at most as far from every point of the box.
    """
    squares = {variables: f for variables, f in comparison.polynomial.items() if len(variables) == 2}
    factor = next(iter(squares.values()))
    if factor <= 0 or any(one != other for one, other in squares) or set(squares.values()) != {factor}:
        raise DataError(INPUTS)
    shifts = {variables[0]: f / (-2 * factor) for variables, f in comparison.polynomial.items() if len(variables) == 1}
    inside = {place for ((_, place), _) in squares}
    if not {place for _, place in shifts} <= inside:
        raise DataError(INPUTS)
    square = sum((shift * shift for shift in shifts.values()), -comparison.polynomial.get((), Fraction(0)) / factor)
    if square < 0:
        return None
    centre, moved = [], Fraction(0)
    for place, (least, most) in enumerate(zip(low[0].tolist(), high[0].tolist(), strict=True)):
        if place in inside:
            exact = shifts.get(("X", place), Fraction(0))
            middle = float(exact)
            moved += (exact - Fraction(middle)) ** 2
        elif math.isfinite(most - least):
            middle = least / 2 + most / 2
            square += max(Fraction(most) - Fraction(middle), Fraction(middle) - Fraction(least)) ** 2
        else:
            raise DataError(UNBOUNDED)
        centre.append(min(max(middle, least), most))
    eps = torch.tensor([_root_up(square) + _root_up(moved)], dtype=torch.float64)
    return Region(
        torch.tensor([centre], dtype=torch.float64),
        torch.nextafter(eps, torch.full_like(eps, math.inf)),
        "l2",
        low,
        high,
    )


def _up(value: Fraction) -> float:
    """The smallest float64 at or above it."""
    near = float(value)
    return near if Fraction(near) >= value else math.nextafter(near, math.inf)


def _root_up(square: Fraction) -> float:
    """At or above the root, by at most 2^-80 and one rounding."""
    return _up(Fraction(math.isqrt(math.ceil(square * 2**160)) + 1, 2**80)) if square else 0.0
