"""Proof from evidence: every bound again, in float64 with all roundings charged; the search is not trusted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Self

import torch
from torch import Tensor

from robustres.certify.graph.network import Node
from robustres.certify.local.backward import Form, Rows, pulled_back
from robustres.certify.local.changes import Changes
from robustres.certify.local.evidence import Branch, Evidence, Quadratic
from robustres.certify.local.intermediate import Bounds, bounded, followed
from robustres.certify.local.margins import positive_within
from robustres.certify.local.parts import Way, forms_of_leaves, multipliers_of, signs_of_parts, with_points
from robustres.certify.local.pinned import arguments, narrowed, pinned
from robustres.certify.local.program import Program
from robustres.certify.local.quadratic import Sectors, proved_change, sectors
from robustres.certify.local.relaxations import UnboundedError
from robustres.certify.local.sets import Region
from robustres.certify.local.tangents import Tangents, tangents
from robustres.certify.maps.linear_map import as_rows
from robustres.numerics import gamma, rounded_down, rounded_up

LEAVES = 32  # at a time
LARGEST = 2.0**20  # integer entries of rows up to here times a float32 are exact in float64


@dataclass(frozen=True, eq=False)
class Question:
    """Whether rows y > limits for all outputs y on the region of one sample. rows (R, outputs), limits (R,) float64."""

    region: Region
    rows: Tensor
    limits: Tensor

    def form(self, program: Program, bounds: Bounds) -> Form:
        """Each row minus its limit, with the common lines."""
        owner = torch.zeros(len(self.rows), dtype=torch.long, device=program.device)
        rows = Rows(len(program.steps) - 1, self.rows.to(program.dtype), owner)
        return beyond(pulled_back(program, rows, bounds.lines, bounds.sizes()), self.limits)


def beyond(form: Form, limits: Tensor) -> Form:
    """The form minus these limits; the rounding is charged."""
    charge = form.charge + gamma(8) * (form.constant.abs() + limits.abs())
    return replace(form, constant=form.constant - limits, charge=charge)


@dataclass(frozen=True, eq=False)
class Proof:
    """radii: (R,) within which each row provably exceeds its limit: the region's eps if on all of it, 0 if nothing is
    proved."""

    question: Question
    radii: Tensor

    @classmethod
    def of(cls, program: Program, question: Question, evidence: Evidence) -> Self:
        """By linear bounds, quadratic certificates and trees. program: in float64, otherwise nothing is proved."""
        nothing = torch.zeros(len(question.rows), dtype=torch.float64, device=program.device)
        if program.dtype != torch.float64:
            return cls(question, nothing)
        if program.runs is not None:  # what the changes of the exact network say holds for no other
            evidence = replace(evidence, shared={}, quadratics=())
        try:
            with torch.no_grad():
                return cls(question, _radii(program, question, evidence))
        except UnboundedError:
            return cls(question, nothing)

    @property
    def whole(self) -> Tensor:
        """(R,) whether each row is proved on all of the region."""
        return self.radii >= self.question.region.eps[0]


def _radii(program: Program, question: Question, evidence: Evidence) -> Tensor:
    """(R,) what each part of the evidence proves. Raises UnboundedError where a step has no finite bounds."""
    region, centre, changes = question.region, Bounds(), None
    if evidence.shared or evidence.quadratics:
        centre = bounded(program, region.with_eps(0.0))
    if evidence.shared:
        changes = followed(program, region, centre, lambda _, place, __: evidence.shared.get(place))
    bounds = bounded(program, region, helped=evidence.helped, changes=changes)
    radii = positive_within(question.form(program, bounds), region)
    if changes is not None and len(program.steps) - 1 in evidence.shared:
        radii = torch.maximum(radii, _by_ellipsoid(program, question, centre, changes))
    if evidence.quadratics and program.order and region.norm != "l1":
        slopes = sectors(program, bounds, centre)
        radii = torch.maximum(radii, _by_quadratics(program, question, centre, slopes, evidence.quadratics))
    for row, tree in evidence.trees.items():
        if radii[row] < region.eps[0]:
            radii[row] = max(float(radii[row]), _by_tree(program, question, bounds, row, tree))
    return radii


def _by_ellipsoid(program: Program, question: Question, centre: Bounds, changes: Changes) -> Tensor:
    """(R,) the radii that the changes of the output prove, for all rows; as `_by_quadratics`."""
    change = changes.decrease(len(program.steps) - 1, question.rows)
    radii = torch.zeros_like(question.limits)
    if change is not None:
        margins = _margins(program, question, centre)
        for row, (margin, most) in enumerate(zip(margins, change.tolist(), strict=True)):
            radii[row] = _radius(question.region, margin, most)
    return radii


def _margins(program: Program, question: Question, centre: Bounds) -> list[float]:
    """(R,) proved lower bounds of the rows at the image itself."""
    found: list[float] = question.form(program, centre).minimum(question.region.with_eps(0.0)).tolist()
    return found


def _radius(region: Region, margin: float, change: float) -> float:
    """The radii within which a change leaves the margin positive; in l2 it grows at most as fast as the radius."""
    eps = float(region.eps[0])
    if change < margin:
        return eps
    if region.norm == "l2" and margin > 0 and change < math.inf:
        return rounded_down(eps * (margin / change), 4)
    return 0.0


def _by_quadratics(
    program: Program, question: Question, centre: Bounds, slopes: Sectors, quadratics: Sequence[Quadratic]
) -> Tensor:
    """(R,) the radii that they prove; outside l2, the whole radius or 0."""
    margins, known = _margins(program, question, centre), tangents(program, centre)
    radii = torch.zeros_like(question.limits)
    for quadratic in quadratics:
        for row, change in _changes(program, question, slopes, quadratic, known).items():
            radii[row] = max(float(radii[row]), _radius(question.region, margins[row], change))
    return radii


def _changes(
    program: Program, question: Question, slopes: Sectors, quadratic: Quadratic, known: Tangents
) -> dict[int, float]:
    """At or above the decrease of each row of the certificate.

    A bound of the sum of the squares of the rows, each times its scale, bounds each row. The products with the scales
    must be exact, which is certain if the rows contain small integers.
    """
    rows = question.rows[list(quadratic.rows)]
    scales = [float(torch.tensor(scale, dtype=torch.float32)) for scale in quadratic.scales]
    exact = bool(((rows == rows.round()) & (rows.abs() <= LARGEST)).all())
    sound = all(2.0**-60 < scale < 2.0**60 for scale in scales)
    if len(scales) != len(quadratic.rows) or not sound or (not exact and scales != [1.0]):
        return {}
    together = rows * torch.tensor(scales, dtype=torch.float64, device=rows.device)[:, None]
    change = proved_change(program, slopes, together, question.region, quadratic.point, known=known)
    return {row: rounded_up(change / scale, 1) for row, scale in zip(quadratic.rows, scales, strict=True)}


def _by_tree(program: Program, question: Question, bounds: Bounds, row: int, tree: Branch) -> float:
    """The smallest radius that any leaf proves; the leaves together cover the whole region."""
    radius = float(question.region.eps[0])
    waiting = tree.leaves()
    while radius > 0 and (leaves := tuple(islice(waiting, LEAVES))):
        plain = [(leaf, way) for leaf, way in leaves if leaf.point is None]
        if plain:
            form = forms_of_leaves(program, bounds, question.rows[row : row + 1], plain, bounds.sizes())
            form = beyond(form, question.limits[row : row + 1].expand(len(plain)))
            radius = min(radius, float(positive_within(form, question.region).min()))
        for leaf, way in leaves:
            if leaf.point is not None and radius > 0:
                radius = min(radius, _by_quadratic_leaf(program, question, bounds, row, leaf, way))
    return radius


def _by_quadratic_leaf(program: Program, question: Question, bounds: Bounds, row: int, leaf: Branch, way: Way) -> float:
    """The radius that the quadratic certificate of a leaf proves on its part of the region; as `_by_quadratics`."""
    if question.region.norm == "l1" or not program.order:
        return 0.0
    return _radius(question.region, *margin_and_change(program, question, bounds, row, leaf, way))


def margin_and_change(
    program: Program, question: Question, bounds: Bounds, row: int, leaf: Branch, way: Way
) -> tuple[float, float]:
    """The margin of a row at the image and the largest decrease from it on a part of the region, by a certificate.

    On the part, every activation that was split at its kink is linear. Both numbers are about the network with these
    pieces (`pinned`), and about the row plus its multipliers times the constraints of the splits, none of which is
    positive on the part.
    """
    assert leaf.point is not None
    part, at_image = pinned(program, way), question.region.with_eps(0.0)
    centre = bounded(part, at_image)
    signs, points = signs_of_parts(program, [way], torch.float64)
    multipliers: dict[int, Tensor] = {}
    inner: dict[Node, Tensor] = {}  # by the argument of the activation that was split
    nodes = arguments(program)
    for place, values in multipliers_of(program, [leaf], signs, torch.float64).items():
        if place in nodes and nodes[place] not in inner:
            multipliers[place], inner[nodes[place]] = values, as_rows(values)
    one = question.rows[row : row + 1]
    owner = torch.zeros(1, dtype=torch.long, device=program.device)
    rows = Rows(len(program.steps) - 1, one, owner, {}, multipliers)
    form = with_points(pulled_back(part, rows, centre.lines, centre.sizes()), multipliers, points, charged=True)
    margin = float(beyond(form, question.limits[row : row + 1]).minimum(at_image)[0])
    slopes = sectors(part, narrowed(program, bounds, way), centre)
    known = tangents(part, centre)
    return margin, proved_change(part, slopes, one, question.region, leaf.point, [*inner.items()], known)
