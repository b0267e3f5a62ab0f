"""What the laboratory says about one claim: the sentence, the numbers that it rests on, the table and the picture."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, SupportsFloat

import pandas as pd

from robustres.errors import InputError

# exact: a closed form. measured: on data or weights at hand. estimate: a supremum approached from below.
# bound: at or above (or, where the words say "lower bound", at or below) the truth, whatever the input.
Side = Literal["exact", "measured", "estimate", "bound"]
Relation = Literal["", "<=", ">="]


@dataclass(frozen=True)
class Finding:
    """One number, which kind of number it is, and what it is held against.

    relation, limit: `value <= limit` or `value >= limit`; "" where the number is only told.
    against: what the limit is, in words that say whether it is a tolerance, a bound or another measurement.

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
            raise InputError(f"the finding {self.what!r} is compared with a number that has no name; fill in `against`")

    @property
    def holds(self) -> bool:
        """Whether the comparison is true; NaN never holds, and a number without a comparison always does."""
        if self.relation == "<=":
            return self.value <= self.limit
        return self.value >= self.limit if self.relation == ">=" else True

    def at_most(self, limit: SupportsFloat, against: str) -> "Finding":
        """The same number held against a limit that it must not exceed."""
        return replace(self, relation="<=", limit=float(limit), against=against)

    def at_least(self, limit: SupportsFloat, against: str) -> "Finding":
        """The same number held against a limit that it must reach."""
        return replace(self, relation=">=", limit=float(limit), against=against)


def exact(what: str, value: SupportsFloat) -> Finding:
    """A closed form."""
    return Finding(what, float(value), "exact")


def measured(what: str, value: SupportsFloat) -> Finding:
    """A number measured on data or weights at hand."""
    return Finding(what, float(value), "measured")


def estimate(what: str, value: SupportsFloat) -> Finding:
    """A supremum approached from below."""
    return Finding(what, float(value), "estimate")


def bound(what: str, value: SupportsFloat) -> Finding:
    """A number at or above (or, where the words say "lower bound", at or below) the truth, whatever the input."""
    return Finding(what, float(value), "bound")


@dataclass(frozen=True, eq=False)
class Claim:
    """A claim about residual connections, tried.

    name: of its files. title: a few words. statement: the claim in one sentence. source: the literature.
    findings: what was measured and what it is held against. frame: every number behind it, one row per observation.
    chart: a Vega-Lite specification without a theme. caption: what the picture shows, and what it is not.
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
        """The first finding whose words begin so; InputError lists them."""
        for finding in self.findings:
            if finding.what.startswith(what):
                return finding
        raise InputError(f"no finding begins with {what!r}; there are {', '.join(f.what for f in self.findings)}")
