"""Conditions on the sign of an affine function, in scalar functions that are written out: where(x > 0, x, 0.1 x)."""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch

from robustres.certify.maps.piecewise_linear import Abs
from robustres.certify.maps.scalar_expression import (
    Applied,
    Chosen,
    Constant,
    Expression,
    Inverse,
    Times,
    Total,
    Variable,
)
from robustres.certify.proof.rounding import least

MOST_MOVED = 16  # units of rounding of a place by which a computed decision may be taken elsewhere
MOST_CANCELLED = 2**20  # how much smaller a factor may be than the sum of its terms
LARGEST_TERM, LEAST_PLACE = 10**100, Fraction(1, 10**200)  # of what is compared


class NotScalarError(Exception):
    """An operation that is not a scalar function, or is not known to be one."""


def compared(larger: Expression, smaller: Expression, strict: bool) -> Expression:
    """1 or 0, by comparing an affine function of the value, or its absolute value, with a number."""
    swapped = isinstance(larger, Constant)  # level > test: otherwise test >= level
    test, level, strict = (smaller, larger, not strict) if swapped else (larger, smaller, strict)
    if not isinstance(level, Constant):
        test, level = Total(test, Times(Constant(-1.0), level)), Constant(0.0)
    ends = [Fraction(level.number)]
    if isinstance(test, Applied) and isinstance(test.function, Abs):
        test, ends = test.inner, [ends[0], -ends[0]]
    affine = _affine(test)
    if affine.factor == 0 or (len(ends) > 1 and ends[0] < 0):
        raise NotScalarError
    places = tuple(sorted((end - affine.shift) / affine.factor for end in ends))
    if not all(map(affine.is_decided_at, places)):
        raise NotScalarError
    found = Chosen(places, len(ends) > 1 or affine.factor > 0, strict, Constant(1.0), Constant(0.0))
    return chosen(found, Constant(0.0), Constant(1.0)) if swapped else found


def chosen(condition: Any, above: Expression, below: Expression) -> Expression:
    """`above` where the condition is 1, `below` where it is 0."""
    match condition:
        case Chosen(above=Constant(number=1.0), below=Constant(number=0.0)):
            return replace(condition, above=above, below=below)
        case Chosen(above=Constant(number=0.0), below=Constant(number=1.0)):
            return replace(condition, above=below, below=above)
    raise NotScalarError


@dataclass(frozen=True)
class Affine:
    """factor x + shift, exactly; the sums of the absolute values of the terms; what underflow adds to its value."""

    factor: Fraction
    shift: Fraction
    factors: Fraction
    shifts: Fraction
    lost: Fraction
    operations: int

    def is_decided_at(self, place: Fraction) -> bool:
        """Whether a sign that is computed in float64 changes within a few units of rounding of the exact place, which
        is what `Written.gaps` allows for: its terms do not cancel, overflow or underflow.
        """
        moved = self.operations * (self.factors * abs(place) + self.shifts)
        extreme = max(self.factors, self.shifts, abs(place)) > LARGEST_TERM or abs(self.factor) * LARGEST_TERM < 1
        small = self.lost <= LEAST_PLACE * abs(self.factor)
        far = self.operations * self.factors <= MOST_CANCELLED * abs(self.factor)
        return moved <= MOST_MOVED * abs(place * self.factor) and far and small and not extreme


def _affine(expression: Expression) -> Affine:
    zero, lost = Fraction(0), Fraction(least(torch.float64))
    match expression:
        case Variable():
            return Affine(Fraction(1), zero, Fraction(1), zero, zero, 0)
        case Constant():
            number = Fraction(expression.number)
            return Affine(zero, number, zero, abs(number), zero, 0)
        case Inverse(inner=Constant(number=number)) if number:
            return Affine(zero, 1 / Fraction(number), zero, 1 / abs(Fraction(number)), lost, 1)
        case Total():
            a, b = _affine(expression.left), _affine(expression.right)
            sums = (a.factor + b.factor, a.shift + b.shift, a.factors + b.factors, a.shifts + b.shifts)
            return Affine(*sums, a.lost + b.lost, a.operations + b.operations + 1)
        case Times():
            a, b = _affine(expression.left), _affine(expression.right)
            a, b = (a, b) if b.factors == 0 else (b, a)
            if b.factors == 0:
                factors, shifts = a.factors * b.shifts, a.shifts * b.shifts
                added = a.lost * b.shifts + (a.shifts + a.factors) * b.lost + lost
                terms = (a.factor * b.shift, a.shift * b.shift, factors, shifts)
                return Affine(*terms, added, a.operations + b.operations + (abs(b.shift) != 1))
    raise NotScalarError
