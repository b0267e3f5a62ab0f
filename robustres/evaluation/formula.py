"""Conditions on inputs X and outputs Y of a network, in exact arithmetic: comparisons of polynomials, and, or."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain
from itertools import product as choices
from typing import Literal

from robustres.errors import DataError

# Alternatives of a formula; more are refused rather than waited for.
MOST = 1000

Variable = tuple[str, int]
Polynomial = Mapping[tuple[Variable, ...], Fraction]
Values = Mapping[str, Sequence[float]]


@dataclass(frozen=True, eq=False)
class Comparison:
    """polynomial <= 0, or < 0 if strict."""

    polynomial: Polynomial
    strict: bool

    def holds(self, values: Values) -> bool:
        """Whether it is true of these values, exactly; never of values that are not finite."""
        value = Fraction(0)
        for variables, factor in self.polynomial.items():
            for letter, place in variables:
                number = values[letter][place]
                if not math.isfinite(number):
                    return False
                factor *= Fraction(number)
            value += factor
        return value < 0 or (value == 0 and not self.strict)

    def alternatives(self) -> "list[list[Comparison]]":
        if any(self.polynomial):
            return [[self]]
        return [[]] if self.holds({}) else []

    @cached_property
    def letters(self) -> set[str]:
        """Which of X and Y it is about."""
        return {letter for variables in self.polynomial for letter, _ in variables}


@dataclass(frozen=True, eq=False)
class Several:
    """All of the parts or at least one."""

    word: Literal["and", "or"]
    parts: "tuple[Formula, ...]"

    def holds(self, values: Values) -> bool:
        """Whether it is true of these values, exactly."""
        return (all if self.word == "and" else any)(part.holds(values) for part in self.parts)

    def alternatives(self) -> list[list[Comparison]]:
        """Lists of comparisons; the formula is true where all of one list are. DataError if there are too many."""
        parts = [part.alternatives() for part in self.parts]
        if self.word == "or":
            return [case for part in parts for case in part]
        shared = [one for part in parts if len(part) == 1 for one in part[0]]
        several = [part for part in parts if len(part) != 1]
        if math.prod(map(len, several)) > MOST:
            raise DataError(f"a property may have up to {MOST} alternatives, got {math.prod(map(len, several))}")
        return [[*shared, *chain.from_iterable(choice)] for choice in choices(*several)]


Formula = Comparison | Several


def number(word: str) -> Fraction:
    """The exact value of a decimal number."""
    if not re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?", word):
        raise DataError(f"expected a number or a declared variable in the property, got {word}")
    return Fraction(word)


def total(terms: Iterable[Polynomial]) -> Polynomial:
    """The sum."""
    found: dict[tuple[Variable, ...], Fraction] = {}
    for term in terms:
        for variables, factor in term.items():
            found[variables] = found[variables] + factor if variables in found else factor
    return {variables: factor for variables, factor in found.items() if factor}


def negated(term: Polynomial) -> Polynomial:
    """The term times -1."""
    return {variables: -factor for variables, factor in term.items()}


def difference(left: Polynomial, right: Polynomial) -> Polynomial:
    """left - right."""
    return total([left, negated(right)])


def product(terms: Sequence[Polynomial]) -> Polynomial:
    """The product, of degree 2 at most; DataError above that."""
    found: Polynomial = {(): Fraction(1)}
    for term in terms:
        found = total(
            {tuple(sorted((*one, *other))): first * second}
            for one, first in found.items()
            for other, second in term.items()
        )
        if any(len(variables) > 2 for variables in found):
            raise DataError("a property may contain products of two variables, but not of more")
    return found
