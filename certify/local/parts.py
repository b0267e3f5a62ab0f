"""Parts of a region on one side of some splits: their lines, and rows with the multipliers of the splits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustres.certify.local.backward import Form, Rows, Sizes, pulled_back
from robustres.certify.local.evidence import Branch, Split
from robustres.certify.local.intermediate import Bounds
from robustres.certify.local.program import Program
from robustres.certify.local.relaxations import Relaxation, lines
from robustres.certify.local.steps import Activation
from robustres.numerics import gamma

Way = Sequence[tuple[Split, bool]]


def lines_of_parts(program: Program, bounds: Bounds, ways: Sequence[Way]) -> dict[int, Relaxation]:
    """The lines of every activation: (L, *shape) where a split narrows them, (1, *shape) as on the whole elsewhere; and
    the planes of the products, as on the whole.

    bounds: of the whole region, one sample.
    """
    found = dict(bounds.lines)
    for place in {split.place for way in ways for split, _ in way}:
        step = program.steps[place]
        assert isinstance(step, Activation)
        lower, upper = (
            side[step.source].flatten(1).expand(len(ways), -1).clone() for side in (bounds.lower, bounds.upper)
        )
        for at, way in enumerate(ways):
            for split, above in way:
                if split.place == place and above:
                    lower[at, split.coordinate] = lower[at, split.coordinate].clamp_min(split.point)
                elif split.place == place:
                    upper[at, split.coordinate] = upper[at, split.coordinate].clamp_max(split.point)
        # A part may be empty; then any statement about it is true, so any interval is valid.
        found[place] = lines(step, *(side.reshape(-1, *step.shape) for side in (lower, torch.maximum(lower, upper))))
    return found


def signs_of_parts(program: Program, ways: Sequence[Way], dtype: torch.dtype) -> tuple[dict[int, Tensor], ...]:
    """By place (L, *shape): -1 where a part lies above a point, 1 below, 0 elsewhere; and those points."""
    signs: dict[int, Tensor] = {}
    points: dict[int, Tensor] = {}
    for at, way in enumerate(ways):
        for split, above in way:
            shape = program.steps[split.place].shape
            for values in (signs, points):
                if split.place not in values:
                    values[split.place] = torch.zeros(len(ways), *shape, dtype=dtype, device=program.device)
            signs[split.place][at].view(-1)[split.coordinate] = -1.0 if above else 1.0
            points[split.place][at].view(-1)[split.coordinate] = split.point
    return signs, points


def with_points(form: Form, multipliers: Mapping[int, Tensor], points: Mapping[int, Tensor], *, charged: bool) -> Form:
    """The form after each multiplier's own constant: multiplier times (argument - point) is never positive."""
    for place, values in multipliers.items():
        terms = (values * points[place]).flatten(1).to(form.constant.dtype)
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
    multipliers = {place: torch.zeros_like(values) for place, values in signs.items()}
    for at, (leaf, _) in enumerate(leaves):
        for split, value in leaf.multipliers.items():
            if split.place in multipliers:
                multipliers[split.place][at].view(-1)[split.coordinate] = value
    for place, sign in signs.items():  # only with the right sign and at splits; non-finite ones are left out
        usable = torch.nan_to_num(multipliers[place], nan=0.0, posinf=0.0, neginf=0.0)
        multipliers[place] = sign.abs() * torch.where(sign < 0, usable.clamp_max(0), usable.clamp_min(0))
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
