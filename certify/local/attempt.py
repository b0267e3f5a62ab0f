"""An attempt to prove every row of a question on its region by one method after another: a search in float32.

A row whose `least` exceeds 0 counts as proved during the search; only `Proof` decides.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import thread_time

import torch
from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.local.backward import Rows
from robustres.certify.local.branch import Tree, branched
from robustres.certify.local.changes import Multipliers
from robustres.certify.local.evidence import Branch, Evidence, Quadratic
from robustres.certify.local.intermediate import Bounds, Helped, OutOfTimeError, bounded, followed
from robustres.certify.local.margins import positive_within
from robustres.certify.local.program import Program
from robustres.certify.local.proof import Question
from robustres.certify.local.quadratic import Sectors, added, searched, sectors
from robustres.certify.local.quadratic_branch import branched_quadratically
from robustres.certify.local.relaxations import UnboundedError
from robustres.certify.local.sets import Region
from robustres.certify.local.shared import SharedSearch
from robustres.certify.local.sharpen import sharpened
from robustres.certify.local.tangents import tangents

# The change that a quadratic certificate proves is about a thousandth above the value that its search reached.
SHARE = 1.002
# Largest sum of the squared shares of margins for rows that are proved together.
TOGETHER = 0.98
# By how much, relative to the margin at the image, a bound found in float32 stays clear of its limit.
CLEAR = 1e-5
# Of the charge for the network's own rounding by linear bounds, what parts of a region are searched to spare.
CHARGED = 1.1
# Up to this share of the margin, a certificate of the whole region is branched on at once; beyond the second one, only
# linear bounds are. In between, these come first, for this part of the time.
NEAR, FAR, LINEAR_FIRST = 1.12, 1.6, 0.2

Left = Callable[[], float]


@dataclass(eq=False)
class Attempt:
    """made, quick: the program in float64 and in float32. left: seconds until the search must end. Where a step has no
    finite bounds on the region, every method leaves all rows open.

    starts: results of earlier quadratic searches by their rows, as starting points; updated. cases: groups of rows, of
    which each needs one proved row; if omitted, every row is a group. shares: by rows that were searched together,
    their largest possible change, each relative to its margin at the image. ellipsoids: multipliers of an earlier
    attempt, then of this one. rows_left: seconds until backward rows are given up even if nothing is bounded by then;
    None for no limit.
    """

    made: Program
    quick: Program
    question: Question
    left: Left
    starts: dict[tuple[int, ...], FixedPoint] = field(default_factory=dict)
    cases: Sequence[Sequence[int]] | None = None
    helped: dict[int, Helped] = field(default_factory=dict)
    points: dict[tuple[int, ...], FixedPoint] = field(default_factory=dict)
    shares: dict[tuple[int, ...], float] = field(default_factory=dict)
    trees: dict[int, Branch] = field(default_factory=dict)
    ellipsoids: Mapping[int, Multipliers] = field(default_factory=dict)
    shared: bool = False
    rows_left: Left | None = None

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.region: Region = self.question.region.to(self.quick.dtype)
            self.centre: Bounds = Bounds()
            with suppress(UnboundedError):
                self.centre = bounded(self.made, self.question.region.with_eps(0.0), rows=False)
            self.tangents = tangents(self.made, self.centre) if self.centre.lower else {}
            values = self.made.values(self.question.region.centre)[-1][0]
            self.margins: Tensor = self.question.rows @ values - self.question.limits
            self.least = torch.full_like(self.margins, -math.inf)
            self.radii = torch.zeros_like(self.margins)
            self.bounds: Bounds = Bounds()
            self.charge = torch.zeros_like(self.margins)

    @property
    def open(self) -> list[int]:
        """The rows to prove, smallest `least` first: of every unproved case, the row with the largest `least`."""
        cases = [[row] for row in range(len(self.least))] if self.cases is None else self.cases
        nearest = [max(case, key=lambda row: (float(self.least[row]), float(self.margins[row]))) for case in cases]
        return sorted((row for row in nearest if not self.least[row] > 0), key=lambda row: float(self.least[row]))

    @property
    def evidence(self) -> Evidence:
        """The result of the search, for the proof."""
        return Evidence(self.helped, tuple(self._grouped()), self.trees, self.ellipsoids if self.shared else {})

    def linear(self) -> None:
        """Backward propagation with the common lines."""
        with torch.no_grad(), suppress(UnboundedError, OutOfTimeError):
            self.bounds = bounded(self.quick, self.region, left=self.rows_left)
            self._look()

    def narrowed(self) -> None:
        """Bounds of all steps by ellipsoids around the image and backward rows, then bounds of the question's rows.

        Ellipsoids bound the exact network only; for one that rounds, this is `linear`.
        """
        if self.quick.runs is not None:
            self.linear()
            return
        if not self.centre.lower:
            return
        search = SharedSearch(self.ellipsoids)
        with torch.no_grad(), suppress(UnboundedError, OutOfTimeError):
            changes = followed(self.quick, self.question.region, self.centre, search)
            self.bounds = bounded(self.quick, self.region, changes=changes, left=self.rows_left)
            self._look()
            rows = (self.margins > 0).nonzero().flatten()
            if not changes.ended and len(rows):
                place, margins = len(self.made.steps) - 1, self.margins[rows]
                targets = changes.targets(place, rows=self.question.rows[rows].to(self.quick.dtype))
                targets = changes.sided(targets, 1.0)
                change = changes.bound(targets, search.chosen(changes, place, targets, margins)).to(margins)
                shares = (1 + CLEAR) * change / margins
                self.least[rows] = torch.maximum(self.least[rows], margins * (1 - shares))
                if self.question.region.norm == "l2":
                    radii = self.question.region.eps[0] * shares.reciprocal().clamp_max(1.0)
                    self.radii[rows] = torch.maximum(self.radii[rows], radii)
        self.ellipsoids, self.shared = search.found, bool(search.found)

    def _look(self) -> None:
        form = self.question.form(self.quick, self.bounds)
        least = form.minimum(self.region)
        self.charge = form.charge
        self.least = torch.maximum(self.least, least - CLEAR * self.margins.abs())
        self.radii = torch.maximum(self.radii, positive_within(form, self.region))

    def quadratic(self, *, most: float = math.inf, give_up: float = math.inf) -> None:
        """Quadratic certificates for the open rows, until the time is over.

        First for all rows together; if that fails, the row that is most easily lost gets a certificate of its own, and
        the rest is tried again. most: rows whose last share of the margin was larger are left out. give_up: stop at the
        first share that is at least this.
        """
        if self.question.region.norm == "l1" or not self.made.order or not self.bounds.lower:
            return
        with torch.no_grad():
            slopes = sectors(self.made, self.bounds, self.centre)
        nearness = self._nearness()
        rows = [row for row in self.open if self.margins[row] > 0 and self.shares.get((row,), 0.0) <= most]
        rest = tuple(sorted(rows, key=lambda row: -nearness[row]))
        while rest and self.left() > 0:
            share = self._quadratic(rest, slopes)
            if share < 1 or share >= give_up or len(rest) == 1 or self.left() <= 0:
                return
            alone, rest = rest[:1], rest[1:]
            if self._quadratic(alone, slopes) >= give_up:
                return

    def _nearness(self) -> list[float]:
        """For every row, the share of its margin at the image that the linearised network can lose on the region."""
        region = self.question.region
        with torch.enable_grad():
            x = region.centre.expand(len(self.margins), *region.centre.shape[1:]).clone().requires_grad_()
            total = (self.made.values(x)[-1] * self.question.rows).sum()
            (slope,) = torch.autograd.grad(total, x)
        with torch.no_grad():
            owner = torch.zeros(len(slope), dtype=torch.long, device=slope.device)
            loss = region.descent(slope, owner, close=False)
        return (loss / self.margins.clamp_min(1e-12)).tolist()

    def _quadratic(self, rows: tuple[int, ...], slopes: Sectors) -> float:
        """Search one certificate for all of these rows; return the share of their margins that they may lose."""
        region, margins = self.question.region, self.margins[list(rows)]
        eps = float(region.eps[0])
        start = self.points.get(rows, self.starts.get(rows))
        together = self.question.rows[list(rows)] * self._scales(rows)[:, None]
        point = searched(self.made, slopes, together, region, known=self.tangents, start=start)
        share = SHARE * point.value * (eps if region.norm == "l2" else 1.0)
        self.starts[rows] = point
        if share < self.shares.get(rows, math.inf):
            self.points[rows], self.shares[rows] = point, share
            for row, margin in zip(rows, margins.tolist(), strict=True):
                self.least[row] = max(float(self.least[row]), margin * (1 - share))
                if region.norm == "l2":
                    self.radii[row] = max(float(self.radii[row]), eps * min(1.0, 1 / max(share, 1e-300)))
        return share

    def _scales(self, rows: Sequence[int]) -> Tensor:
        """1 / margin, in float32, so that products with small integers are exact in float64."""
        return (1 / self.margins[list(rows)]).to(torch.float32).to(torch.float64)

    def sharpen(self) -> None:
        """Tighten intermediate bounds for the open rows."""
        rows = self.open
        if not rows or not self.bounds.lower:
            return
        weights = self.question.rows[rows].to(self.quick.dtype)
        owner = torch.zeros(len(rows), dtype=torch.long, device=self.quick.device)
        last = len(self.quick.steps) - 1
        with torch.no_grad():
            self.bounds, self.helped = sharpened(self.quick, self.region, self.bounds, Rows(last, weights, owner))
            self._look()

    def branch(self, seconds: float = math.inf) -> None:
        """Branch and bound for the open rows, largest `least` first; it ends at the first row that it cannot prove.

        By linear bounds, and for rows that a quadratic certificate nearly proves by these instead.
        """
        for row in reversed(self.open if self.bounds.lower else []):
            until = min(self.left(), seconds)
            if until <= 0:
                return
            tree = self._branched(row, until)
            self.least[row] = max(float(self.least[row]), tree.worst)
            if not tree.closed:
                return
            self.trees[row] = tree.root

    def _branched(self, row: int, seconds: float) -> Tree:
        begun, one, limit = thread_time(), self.question.rows[row : row + 1], float(self.question.limits[row])
        share = self.shares.get((row,), math.inf)

        def left(part: float = 1.0) -> float:
            return min(self.left(), part * seconds - (thread_time() - begun))

        tree = None
        if share > NEAR:
            first = LINEAR_FIRST if share < FAR else 1.0
            with torch.no_grad():
                tree = branched(
                    self.quick,
                    self.region,
                    self.bounds,
                    one,
                    limit,
                    margin=CLEAR * abs(float(self.margins[row])) + CHARGED * float(self.charge[row]),
                    stop=lambda: left(first) <= 0,
                )
        if tree is None or (not tree.closed and share < FAR and left() > 0):
            tree = branched_quadratically(self.made, self.question.region, self.bounds, one, limit, left=left)
        return tree

    def _grouped(self) -> list[Quadratic]:
        """Group certificates whose squared shares add up to less than 1, so that one proof serves all of a group.

        Rows that are proved by a tree or by another certificate with a smaller share are left out.
        """
        kept: list[tuple[int, ...]] = []
        for rows in sorted(self.points, key=lambda rows: (self.shares[rows] >= 1, -len(rows))):
            new = [row for row in rows if row not in self.trees and not any(row in other for other in kept)]
            if new and (self.shares[rows] < 1 or self.question.region.norm == "l2"):
                kept.append(rows)
        groups: list[list[tuple[int, ...]]] = []
        for rows in sorted(kept, key=lambda rows: -self.shares[rows]):
            share = self.shares[rows] ** 2
            for group in groups:
                if share + sum(self.shares[other] ** 2 for other in group) < TOGETHER:
                    group.append(rows)
                    break
            else:
                groups.append([rows])
        return [self._quadratic_of(group) for group in groups]

    def _quadratic_of(self, group: list[tuple[int, ...]]) -> Quadratic:
        rows = tuple(row for one in group for row in one)
        point = added([self.points[one] for one in group], [len(one) for one in group])
        return Quadratic(rows, tuple(self._scales(rows).tolist()), point)
