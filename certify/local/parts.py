"""Parts of a region on one side of some splits: their lines, and rows with the multipliers of the splits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from robustres.certify.local.backward import Form, Rows, Sizes, pulled_back
from robustres.certify.local.evidence import Branch, Split
from robustres.certify.local.intermediate import Bounds
from robustres.certify.local.program import Program
from robustres.certify.local.relaxations import Lines, Relaxation, lines
from robustres.certify.local.steps import Activation
from robustres.certify.maps.linear_map import as_rows
from robustres.numerics import gamma

Way = Sequence[tuple[Split, bool]]


def lines_of_parts(program: Program, bounds: Bounds, ways: Sequence[Way]) -> dict[int, Relaxation]:
    """The lines of every activation: (L, *shape) where a split narrows them, (1, *shape) as on the whole elsewhere; and
    the planes of the products, as on the whole.

    bounds: of the whole region, one sample.
    """
    found = dict(bounds.lines)
    narrowed: dict[int, dict[tuple[int, int], tuple[float, float]]] = {}  # by place, part and coordinate
    for at, way in enumerate(ways):
        for split, above in way:
            mine = narrowed.setdefault(split.place, {})
            low, high = mine.get((at, split.coordinate), (-math.inf, math.inf))
            side = (max(low, split.point), high) if above else (low, min(high, split.point))
            mine[at, split.coordinate] = side
    for place, intervals in narrowed.items():
        step, whole = program.steps[place], bounds.lines[place]
        assert isinstance(step, Activation)
        assert isinstance(whole, Lines)
        # Parts often narrow a coordinate alike; lines are computed once for each interval: (V, *shape) for at most V.
        kinds: dict[int, dict[tuple[float, float], int]] = {}
        for (_, coordinate), interval in intervals.items():
            mine_kinds = kinds.setdefault(coordinate, {})
            mine_kinds.setdefault(interval, len(mine_kinds))
        number = [kinds[coordinate][interval] for (_, coordinate), interval in intervals.items()]
        sides = []
        for whole_side, end, narrower in ((bounds.lower, 0, torch.maximum), (bounds.upper, 1, torch.minimum)):
            flat = as_rows(whole_side[step.source]).expand(max(number) + 1, -1).clone()
            rows = torch.tensor(number, device=flat.device)
            columns = torch.tensor([coordinate for _, coordinate in intervals], device=flat.device)
            ends = torch.tensor([interval[end] for interval in intervals.values()], dtype=torch.float64).to(flat)
            flat[rows, columns] = narrower(flat[rows, columns], ends)
            sides.append(flat.reshape(-1, *step.shape))
        # A part may be empty; then any statement about it is true, so any interval is valid.
        several = lines(step, sides[0], torch.maximum(*sides))
        parts = torch.tensor([at for at, _ in intervals], device=rows.device)
        made = {}
        for field in fields(Lines):
            values = as_rows(getattr(whole, field.name)).expand(len(ways), -1).clone()
            values[parts, columns] = as_rows(getattr(several, field.name))[rows, columns]
            made[field.name] = values.reshape(-1, *step.shape)
        found[place] = Lines(**made)
    return found


Entries = Mapping[tuple[int, int], float]


def filled(program: Program, entries: Mapping[int, Entries], count: int, dtype: torch.dtype) -> dict[int, Tensor]:
    """By place (count, *shape): values by part and (flat) coordinate, 0 elsewhere."""
    found = {}
    for place, values in entries.items():
        shape = program.steps[place].shape
        whole = torch.zeros(count, math.prod(shape), dtype=dtype, device=program.device)
        at = torch.tensor(list(values), dtype=torch.long, device=program.device).reshape(-1, 2)
        whole[at[:, 0], at[:, 1]] = torch.tensor(list(values.values()), dtype=torch.float64).to(whole)
        found[place] = whole.reshape(count, *shape)
    return found


def signs_of_parts(program: Program, ways: Sequence[Way], dtype: torch.dtype) -> tuple[dict[int, Tensor], ...]:
    """By place (L, *shape): -1 where a part lies above a point, 1 below, 0 elsewhere; and those points."""
    signs: dict[int, dict[tuple[int, int], float]] = {}
    points: dict[int, dict[tuple[int, int], float]] = {}
    for at, way in enumerate(ways):
        for split, above in way:
            signs.setdefault(split.place, {})[at, split.coordinate] = -1.0 if above else 1.0
            points.setdefault(split.place, {})[at, split.coordinate] = split.point
    return tuple(filled(program, entries, len(ways), dtype) for entries in (signs, points))


def multipliers_of(
    program: Program, branches: Sequence[Branch], signs: Mapping[int, Tensor], dtype: torch.dtype
) -> dict[int, Tensor]:
    """By place (L, *shape): the branches' multipliers with the right sign, only at splits; non-finite ones are left
    out."""
    given: dict[int, dict[tuple[int, int], float]] = {place: {} for place in signs}
    for at, branch in enumerate(branches):
        for split, value in branch.multipliers.items():
            if split.place in given:
                given[split.place][at, split.coordinate] = value
    found = {}
    for place, values in filled(program, given, len(branches), dtype).items():
        usable = torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        found[place] = signs[place].abs() * torch.where(signs[place] < 0, usable.clamp_max(0), usable.clamp_min(0))
    return found


def with_points(form: Form, multipliers: Mapping[int, Tensor], points: Mapping[int, Tensor], *, charged: bool) -> Form:
    """The form after each multiplier's own constant: multiplier times (argument - point) is never positive."""
    for place, values in multipliers.items():
        terms = as_rows(values * points[place]).to(form.constant.dtype)
        shift, size = terms.sum(dim=1), terms.abs().sum(dim=1)
        charge = form.charge + (
            gamma(terms.shape[1] + 4) * (size + form.constant.abs() + shift.abs()) if charged else 0
        )
        form = replace(form, constant=form.constant - shift, charge=charge)
    return form


def forms_of_leaves(
    program: Program,
    bounds: Bounds,
    row: Tensor,
    leaves: Sequence[tuple[Branch, Way]],
    sizes: Sizes | None,
) -> Form:
    """One row (1, outputs) on each leaf, with the leaf's own slopes and multipliers; any of them give a bound."""
    ways = [way for _, way in leaves]
    signs, points = signs_of_parts(program, ways, program.dtype)
    multipliers = multipliers_of(program, [leaf for leaf, _ in leaves], signs, program.dtype)
    slopes = {
        place: torch.stack([leaf.slopes[place].to(program.dtype) for leaf, _ in leaves])
        for place in leaves[0][0].slopes
        if all(place in leaf.slopes for leaf, _ in leaves)
    }
    owner = torch.arange(len(leaves), device=program.device)
    rows = Rows(len(program.steps) - 1, row.expand(len(leaves), -1), owner, slopes, multipliers)
    form = pulled_back(program, rows, lines_of_parts(program, bounds, ways), sizes)
    form = replace(form, owner=torch.zeros_like(owner))  # all on the one region
    return with_points(form, multipliers, points, charged=sizes is not None)
