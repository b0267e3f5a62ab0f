"""Bounds, which are at or above the truth, and estimates, which approach it from below; the two are never mixed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import and_

from robustres.errors import InputError
from robustres.numerics import product_up


@dataclass(frozen=True, order=True)
class Guarantee:
    """How often a bound may fail: never (deterministic), or with at most this probability over its random draws.

    >>> str(Guarantee()), str(Guarantee(1e-12))
    ('deterministic', 'probability 1 - 1e-12')
    """

    failure_probability: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.failure_probability < 1:
            raise InputError(f"failure_probability must lie in [0, 1), got {self.failure_probability:g}")

    def __str__(self) -> str:
        if self.failure_probability == 0:
            return "deterministic"
        return f"probability 1 - {self.failure_probability:g}"

    def __and__(self, other: "Guarantee") -> "Guarantee":
        """Both hold: the failure probabilities add (union bound)."""
        total = self.failure_probability + other.failure_probability
        if total == 0:
            return self
        return Guarantee(min(math.nextafter(total, 1.0), math.nextafter(1.0, 0.0)))


def tightness(lower: float, upper: float) -> float:
    """upper / lower, at least 1: the truth lies within this factor; infinite if `lower` is 0."""
    if upper == lower:
        return 1.0
    return upper / lower if lower > 0 else math.inf


@dataclass(frozen=True)
class Bound:
    """An interval that contains a number: `lower` is a lower estimate, `upper` the bound that may be certified.

    upper: at or above the truth, under `guarantee`; infinite if nothing is known.
    lower: attained by an explicit witness, up to rounding; it certifies nothing but shows how loose `upper` can be.
    method: the computation that gave `upper`. seconds: wall-clock time of the whole computation.
    """

    lower: float
    upper: float
    method: str
    guarantee: Guarantee = field(default_factory=Guarantee)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if math.isnan(self.lower) or math.isnan(self.upper) or not 0 <= self.lower <= self.upper:
            raise InputError(
                f"a bound needs 0 <= lower <= upper, got [{self.lower:.17g}, {self.upper:.17g}] from {self.method}"
            )

    @property
    def tightness(self) -> float:
        """See the function of this name."""
        return tightness(self.lower, self.upper)


@dataclass(frozen=True)
class JointBound(Bound):
    """The bound of a residual block with all computed candidates; `upper` is the smallest of them."""

    candidates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """A lower estimate. It is not a bound, and functions that expect a `Bound` do not accept it."""

    value: float
    method: str


def all_hold(guarantees: Iterable[Guarantee]) -> Guarantee:
    """The guarantee of everything together."""
    return reduce(and_, guarantees, Guarantee())


def product(bounds: Sequence[Bound]) -> Bound:
    """The bound of a composition of maps."""
    upper = product_up(bound.upper for bound in bounds)
    return Bound(
        0.0,
        upper,
        "product",
        all_hold(bound.guarantee for bound in bounds),
        math.fsum(bound.seconds for bound in bounds),
    )
