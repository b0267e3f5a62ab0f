"""Tighter intermediate bounds where they matter most, by optimising the slopes of their own rows."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from robustres.certify.local.backward import Rows, pulled_back
from robustres.certify.local.intermediate import (
    Bounds,
    Helped,
    exact_by_interval,
    loose_for,
    unit_rows,
)
from robustres.certify.local.optimise import optimised
from robustres.certify.local.program import Program, copies
from robustres.certify.local.relaxations import relaxation
from robustres.certify.local.sets import Region
from robustres.certify.local.steps import Activation, Product, sources_of
from robustres.certify.maps.linear_map import as_rows

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
        at, side = helped.coordinates[mine], as_rows(sides[place]).clone()
        found = sign * values[mine]
        side[0, at] = torch.maximum(side[0, at], found) if sign > 0 else torch.minimum(side[0, at], found)
        sides[place] = side.reshape_as(sides[place])
    bounds.upper[place] = torch.maximum(bounds.lower[place], bounds.upper[place])
    for reader, step in enumerate(program.steps):
        if isinstance(step, Activation | Product) and place in sources_of(step):
            bounds.lines[reader] = relaxation(step, bounds.lower, bounds.upper)


def _influential(
    program: Program, region: Region, bounds: Bounds, rows: Rows, chosen: int
) -> Mapping[int, tuple[Tensor, Tensor]]:
    """By place, the coordinates and sides whose bounds change the minima most.

    An influence is the derivative of the sum of the minima times the width of the interval.
    """
    lower, upper = list(bounds.lower), list(bounds.upper)
    readers = {place: read for place, read in program.readers.items() if not exact_by_interval(program, place, region)}
    with torch.enable_grad():
        for place in readers:
            lower[place], upper[place] = (side[place].detach().clone().requires_grad_() for side in (lower, upper))
        current = {}
        for place, step in enumerate(program.steps):
            if isinstance(step, Activation | Product):
                current[place] = relaxation(step, lower, upper)
            elif copies(step):
                low, high = (step.map(side[step.source]) for side in (lower, upper))
                if low.requires_grad or place not in readers:
                    lower[place], upper[place] = low, high
        form = pulled_back(program, rows, current)
        least = replace(form, owner=torch.zeros_like(form.owner)).minimum(region, close=False).sum()
        ends = [side[place] for place in readers for side in (lower, upper)]
        if not least.requires_grad:
            return {}
        slopes = torch.autograd.grad(least, ends, allow_unused=True)
    found = {}
    for position, (place, read) in enumerate(readers.items()):
        low, high = bounds.lower[place], bounds.upper[place]
        width = ((high - low) * loose_for(read, low, high)).flatten()
        sides = [
            torch.zeros_like(width) if slope is None else slope.flatten().abs().nan_to_num() * width
            for slope in slopes[2 * position : 2 * position + 2]
        ]
        score = torch.cat(sides)
        top = score.topk(min(chosen, len(score)))
        keep = top.indices[top.values > 0]
        if len(keep):
            signs = torch.where(keep < len(width), 1.0, -1.0).to(width)
            found[place] = keep % len(width), signs
    return dict(sorted(found.items()))
