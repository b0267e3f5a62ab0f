"""The laboratory's result on one claim: the statement, the numbers it rests on, the table and the chart."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, SupportsFloat

import pandas as pd

from robustres.errors import InputError

# exact: a closed form. measured: on given data or weights. estimate: a supremum approached from below.
# bound: at or above (or, where the text says "lower bound", at or below) the truth, for every input.
Side = Literal["exact", "measured", "estimate", "bound"]
Relation = Literal["", "<=", ">="]


@dataclass(frozen=True)
class Finding:
    """One number, its kind, and the limit it is compared with.

    relation, limit: `value <= limit` or `value >= limit`; "" if the number is only reported.
    against: a description of the limit that says whether it is a tolerance, a bound or another measurement.

    >>> exact("0.5^20", 0.5**20).at_most(1e-6, "the stated limit").holds
    True
    """

    what: str
    value: float
    side: Side
    relation: Relation = ""
    limit: float = math.nan
    against: str = ""

    def __post_init__(self) -> None:
        if self.relation and not self.against:
            raise InputError(
                f"the finding {self.what!r} is compared with a limit that has no description; give `against`"
            )

    @property
    def holds(self) -> bool:
        """Whether the comparison is true; always False for NaN, and True for a number without a comparison."""
        if self.relation == "<=":
            return self.value <= self.limit
        return self.value >= self.limit if self.relation == ">=" else True

    def at_most(self, limit: SupportsFloat, against: str) -> "Finding":
        """The same number with a limit that it must not exceed."""
        return replace(self, relation="<=", limit=float(limit), against=against)

    def at_least(self, limit: SupportsFloat, against: str) -> "Finding":
        """The same number with a limit that it must reach."""
        return replace(self, relation=">=", limit=float(limit), against=against)


def exact(what: str, value: SupportsFloat) -> Finding:
    """A closed form."""
    return Finding(what, float(value), "exact")


def measured(what: str, value: SupportsFloat) -> Finding:
    """A number measured on given data or weights."""
    return Finding(what, float(value), "measured")


def estimate(what: str, value: SupportsFloat) -> Finding:
    """A supremum approached from below."""
    return Finding(what, float(value), "estimate")


def bound(what: str, value: SupportsFloat) -> Finding:
    """A number at or above (or, where the text says "lower bound", at or below) the truth, for every input."""
    return Finding(what, float(value), "bound")


@dataclass(frozen=True, eq=False)
class Claim:
    """A claim about residual connections, put to the test.

    name: of its files. title: a few words. statement: the claim in one sentence. source: the literature.
    findings: the measurements and the limits they are compared with. frame: all numbers, one row per observation.
    chart: a Vega-Lite specification without a theme. caption: what the chart shows, and what it does not.
    """

    name: str
    title: str
    statement: str
    source: str
    findings: tuple[Finding, ...]
    frame: pd.DataFrame
    chart: dict[str, Any]
    caption: str

    @property
    def holds(self) -> bool:
        """Whether every finding holds."""
        return all(finding.holds for finding in self.findings)

    def finding(self, what: str) -> Finding:
        """The first finding whose description begins with `what`; raises InputError with the list if there is none."""
        for finding in self.findings:
            if finding.what.startswith(what):
                return finding
        raise InputError(f"no finding begins with {what!r}; there are {', '.join(f.what for f in self.findings)}")
