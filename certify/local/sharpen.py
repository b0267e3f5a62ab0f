"""Tighter intermediate bounds where they matter most, by optimising the slopes of their own rows."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from robustres.certify.local.backward import Rows, pulled_back
from robustres.certify.local.intermediate import Bounds, Helped, unit_rows
from robustres.certify.local.optimise import optimised
from robustres.certify.local.program import Program
from robustres.certify.local.relaxations import lines
from robustres.certify.local.sets import Region
from robustres.certify.local.steps import Activation, Affine, Input

CHOSEN, STEPS, RATE = 256, 8, 0.25
CHUNK = 128  # rows at a time


def sharpened(
    program: Program, region: Region, bounds: Bounds, rows: Rows, *, chosen: int = CHOSEN
) -> tuple[Bounds, dict[int, Helped]]:
    """Tighten the bounds with the largest influence on the rows' minima; return all bounds, and the slopes used.

    region: of one sample, in the program's precision.
    """
    found = Bounds(list(bounds.lower), list(bounds.upper), dict(bounds.lines), bounds.affine)
    helped = {}
    for place, (coordinates, signs) in _influential(program, region, bounds, rows, chosen).items():
        values, slopes = [], []
        for part in torch.split(torch.arange(len(coordinates)), CHUNK):
            weights = unit_rows(coordinates[part], program.steps[place].shape, signs[part])
            best = optimised(
                program,
                Rows(place, weights, torch.zeros(len(part), dtype=torch.long, device=weights.device)),
                found.lines,
                region,
                signs={},
                points={},
                steps=STEPS,
                rate=RATE,
            )
            values.append(best.value.to(weights))
            slopes.append(best.slopes)
        whole = {at: torch.cat([part[at] for part in slopes]).to(torch.float16) for at in slopes[0]}
        helped[place] = Helped(coordinates, signs, whole)
        _tighten(program, found, place, helped[place], torch.cat(values))
    return found, helped


def _tighten(program: Program, bounds: Bounds, place: int, helped: Helped, values: Tensor) -> None:
    for sign, sides in ((1.0, bounds.lower), (-1.0, bounds.upper)):
        mine = helped.signs == sign
        at, side = helped.coordinates[mine], sides[place].flatten(1).clone()
        found = sign * values[mine]
        side[0, at] = torch.maximum(side[0, at], found) if sign > 0 else torch.minimum(side[0, at], found)
        sides[place] = side.reshape_as(sides[place])
    bounds.upper[place] = torch.maximum(bounds.lower[place], bounds.upper[place])
    for reader, step in enumerate(program.steps):
        if isinstance(step, Activation) and step.source == place:
            bounds.lines[reader] = lines(step, bounds.lower[place], bounds.upper[place])


def _influential(
    program: Program, region: Region, bounds: Bounds, rows: Rows, chosen: int
) -> Mapping[int, tuple[Tensor, Tensor]]:
    """By the place of an activation's argument, the coordinates and sides whose bounds change the minima most.

    An influence is the derivative of the sum of the minima times the width of the interval.
    """
    ends: dict[int, tuple[Tensor, Tensor]] = {}
    with torch.enable_grad():
        current = {}
        for place, old in bounds.lines.items():
            step = program.steps[place]
            assert isinstance(step, Activation)
            before = program.steps[step.source]
            if isinstance(before, Input) or (
                isinstance(before, Affine) and before.source == 0 and region.norm == "linf"
            ):
                current[place] = old
                continue
            low, high = (side[step.source].detach().clone().requires_grad_() for side in (bounds.lower, bounds.upper))
            ends[place] = low, high
            current[place] = lines(step, low, high)
        form = pulled_back(program, rows, current)
        least = replace(form, owner=torch.zeros_like(form.owner)).minimum(region, close=False).sum()
        flat = [side for pair in ends.values() for side in pair]
        slopes = torch.autograd.grad(least, flat, allow_unused=True) if flat else ()
    found = {}
    for position, (place, (low, high)) in enumerate(ends.items()):
        width = (high - low).detach().flatten() * bounds.lines[place].loose.flatten()
        sides = [
            torch.zeros_like(width) if slope is None else slope.flatten().abs().nan_to_num() * width
            for slope in slopes[2 * position : 2 * position + 2]
        ]
        score = torch.cat(sides)
        top = score.topk(min(chosen, len(score)))
        keep = top.indices[top.values > 0]
        step = program.steps[place]
        assert isinstance(step, Activation)
        if len(keep):
            signs = torch.where(keep < len(width), 1.0, -1.0).to(width)
            found[step.source] = keep % len(width), signs
    return dict(sorted(found.items()))
