"""The attempt to prove every row of a question on its region, by one method after the other: a search in float32.

What it believes is `least`: a row above 0 counts as proved. Only `Proof` knows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import thread_time

import torch
from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.local.backward import Rows
from robustres.certify.local.branch import branched
from robustres.certify.local.evidence import Branch, Evidence, Quadratic
from robustres.certify.local.intermediate import Bounds, Helped, bounded
from robustres.certify.local.margins import positive_within
from robustres.certify.local.program import Program
from robustres.certify.local.proof import Question
from robustres.certify.local.quadratic import Sectors, added, searched, sectors
from robustres.certify.local.sets import Region
from robustres.certify.local.sharpen import sharpened

# A quadratic certificate proves about a thousandth more change than its search reached.
SHARE = 1.002
# Squares of shares of the margins, of rows that are proved together.
TOGETHER = 0.98
# By how much, relative to the margin at the image, a bound found in float32 stays clear of its limit.
CLEAR = 1e-5

Left = Callable[[], float]


@dataclass(eq=False)
class Attempt:
    """made, quick: the program in float64 and in float32. left: seconds until the search must end.

    starts: points of earlier quadratic searches by row, from which the next ones go on; it is filled. cases: rows of
    which one is enough, for each; every row for itself where left out.
    """

    made: Program
    quick: Program
    question: Question
    left: Left
    starts: dict[int, FixedPoint] = field(default_factory=dict)
    cases: Sequence[Sequence[int]] | None = None
    helped: dict[int, Helped] = field(default_factory=dict)
    points: dict[int, FixedPoint] = field(default_factory=dict)
    shares: dict[int, float] = field(default_factory=dict)
    trees: dict[int, Branch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.region: Region = self.question.region.to(self.quick.dtype)
            point = self.question.region.with_eps(0.0)
            self.centre = bounded(self.made, point, rows=False)
            values = self.made.values(self.question.region.centre)[-1][0]
            self.margins: Tensor = self.question.rows @ values - self.question.limits
            self.least = torch.full_like(self.margins, -math.inf)
            self.radii = torch.zeros_like(self.margins)
            self.bounds: Bounds = Bounds()

    @property
    def open(self) -> list[int]:
        """The rows to prove, the most open first: of every case without a proved row the one that is nearest to it."""
        cases = [[row] for row in range(len(self.least))] if self.cases is None else self.cases
        nearest = [max(case, key=lambda row: (float(self.least[row]), float(self.margins[row]))) for case in cases]
        return sorted((row for row in nearest if not self.least[row] > 0), key=lambda row: float(self.least[row]))

    @property
    def evidence(self) -> Evidence:
        """What was found, for the proof."""
        return Evidence(self.helped, tuple(self._grouped()), self.trees)

    def linear(self) -> None:
        """Backward propagation with the common lines."""
        with torch.no_grad():
            self.bounds = bounded(self.quick, self.region)
            self._look()

    def _look(self) -> None:
        form = self.question.form(self.quick, self.bounds)
        least = form.minimum(self.region)
        self.least = torch.maximum(self.least, least - CLEAR * self.margins.abs())
        self.radii = torch.maximum(self.radii, positive_within(form, self.region))

    def quadratic(self, *, most: float = math.inf, give_up: bool = False) -> None:
        """Quadratic certificates for the rows that are open, the most open first, until the time is over.

        most: rows whose last share of the margin was larger are left out. give_up: at the first that fails.
        """
        if self.question.region.norm == "l1":
            return
        with torch.no_grad():
            slopes = sectors(self.made, self.bounds, self.centre)
        for row in self.open:
            if not self.margins[row] > 0 or self.left() <= 0 or self.shares.get(row, 0.0) > most:
                continue
            self._quadratic(row, slopes)
            if give_up and not self.least[row] > 0:
                return

    def _quadratic(self, row: int, slopes: Sectors) -> None:
        eps, margin = float(self.question.region.eps[0]), float(self.margins[row])
        start = self.points.get(row, self.starts.get(row))
        one = self.question.rows[row : row + 1]
        point = searched(self.made, slopes, one, self.question.region, start=start)
        change = SHARE * point.value * (eps if self.question.region.norm == "l2" else 1.0)
        self.starts[row] = point
        if not change / margin < self.shares.get(row, math.inf):
            return
        self.points[row], self.shares[row] = point, change / margin
        self.least[row] = max(float(self.least[row]), margin - change)
        if self.question.region.norm == "l2":
            self.radii[row] = max(float(self.radii[row]), eps * min(1.0, margin / max(change, 1e-300)))

    def sharpen(self) -> None:
        """Tighter intermediate bounds, for the rows that are open."""
        rows = self.open
        if not rows:
            return
        weights = self.question.rows[rows].to(self.quick.dtype)
        owner = torch.zeros(len(rows), dtype=torch.long, device=self.quick.device)
        last = len(self.quick.steps) - 1
        with torch.no_grad():
            self.bounds, self.helped = sharpened(self.quick, self.region, self.bounds, Rows(last, weights, owner))
            self._look()

    def branch(self, seconds: float = math.inf) -> None:
        """Branch and bound for the rows that are open, the least open first; ends at the first that it cannot close."""
        for row in reversed(self.open):
            until = min(self.left(), seconds)
            if until <= 0:
                return
            begun = thread_time()
            with torch.no_grad():
                tree = branched(
                    self.quick,
                    self.region,
                    self.bounds,
                    self.question.rows[row : row + 1],
                    float(self.question.limits[row]),
                    margin=CLEAR * abs(float(self.margins[row])),
                    stop=lambda until=until, begun=begun: self.left() <= 0 or thread_time() - begun > until,  # type: ignore[misc]
                )
            self.least[row] = max(float(self.least[row]), tree.worst)
            if not tree.closed:
                return
            self.trees[row] = tree.root

    def _grouped(self) -> list[Quadratic]:
        """Rows whose squared shares of their margins add up to less than 1 are proved together, from the largest on."""
        groups: list[list[int]] = []
        for row in sorted(self.points, key=lambda row: -self.shares[row]):
            if row in self.trees or not self._needed(row):
                continue
            share = self.shares[row] ** 2
            for group in groups:
                if share + sum(self.shares[other] ** 2 for other in group) < TOGETHER:
                    group.append(row)
                    break
            else:
                groups.append([row])
        return [self._quadratic_of(group) for group in groups]

    def _needed(self, row: int) -> bool:
        """Whether the quadratic certificate is what proves a row, or comes closest."""
        return self.shares[row] < 1 or self.question.region.norm == "l2"

    def _quadratic_of(self, group: list[int]) -> Quadratic:
        if len(group) == 1:
            return Quadratic((group[0],), (1.0,), self.points[group[0]])
        scales = [float(torch.tensor(1 / float(self.margins[row]), dtype=torch.float32)) for row in group]
        return Quadratic(tuple(group), tuple(scales), added([self.points[row] for row in group], scales))
