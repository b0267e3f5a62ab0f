"""Bounds of the argument of every activation, and of every step: intervals first, backward rows where they decide."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustres.certify.local.backward import Rows, Sizes, pulled_back
from robustres.certify.local.program import Program
from robustres.certify.local.relaxations import Lines, lines
from robustres.certify.local.sets import Region
from robustres.certify.local.steps import Activation, Affine, Concatenation, Input, Step, Total
from robustres.numerics import gamma

# Bytes of one chunk of rows at the widest step, of which a handful are alive at a time.
CHUNK = 4 * 2**20


@dataclass(frozen=True, eq=False)
class Bounds:
    """What is proved about every step on the region, and the lines of every activation that follow from it.

    lower, upper: by place, (N, *shape). In float32 they are a search's and no proof.
    """

    lower: list[Tensor] = field(default_factory=list)
    upper: list[Tensor] = field(default_factory=list)
    lines: dict[int, Lines] = field(default_factory=dict)
    affine: dict[int, Tensor] = field(default_factory=dict)

    def sizes(self) -> Sizes | None:
        """For the charge of rounding; None for a search in float32."""
        if self.lower[0].dtype != torch.float64:
            return None
        return Sizes(
            [torch.maximum(low.abs(), high.abs()) for low, high in zip(self.lower, self.upper, strict=True)],
            self.affine,
        )


def bounded(program: Program, region: Region, *, within: Bounds | None = None, rows: bool = True) -> Bounds:
    """Bounds of every step on the region, in the program's precision; with the charge of rounding in float64.

    within: other bounds that hold on the region, which are kept where they are tighter. rows: False: intervals alone.
    """
    bounds = Bounds()
    region = region.to(program.dtype)
    readers = {step.source: step for step in program.steps if isinstance(step, Activation)}
    for place, step in enumerate(program.steps):
        lower, upper = _interval(place, step, program, region, bounds)
        if within is not None:
            lower, upper = torch.maximum(lower, within.lower[place]), torch.minimum(upper, within.upper[place])
        bounds.lower.append(lower)
        bounds.upper.append(upper)
        if place in readers and rows and not _exact_by_interval(step, region):
            _tighten(place, readers[place], program, region, bounds)
    return bounds


def _exact_by_interval(step: Step, region: Region) -> bool:
    return isinstance(step, Input) or (isinstance(step, Affine) and step.source == 0 and region.norm == "linf")


def _interval(place: int, step: Step, program: Program, region: Region, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """A step's interval from those of the steps that it reads, rounded outwards in float64."""
    proves = program.dtype == torch.float64
    match step:
        case Input():
            return region.bounds
        case Affine():
            low, high = bounds.lower[step.source], bounds.upper[step.source]
            centre, radius = step.map(low / 2 + high / 2) + step.constant, step.absolute(high / 2 - low / 2)
            if proves:
                size = step.absolute(torch.maximum(low.abs(), high.abs())) + step.constant_size
                bounds.affine[place] = size * (1 + 1e-6)
                radius = radius + 4 * gamma(step.charged + 8) * bounds.affine[place]
            return centre - radius, centre + radius
        case Activation():
            bounds.lines[place] = found = lines(step, bounds.lower[step.source], bounds.upper[step.source])
            return found.low, found.high
        case Total():
            low = sum((bounds.lower[source] for source in step.sources[1:]), bounds.lower[step.sources[0]])
            high = sum((bounds.upper[source] for source in step.sources[1:]), bounds.upper[step.sources[0]])
            if proves:
                sizes = [torch.maximum(bounds.lower[s].abs(), bounds.upper[s].abs()) for s in step.sources]
                room = 2 * gamma(len(sizes)) * sum(sizes[1:], sizes[0])
                low, high = low - room, high + room
            return low, high
        case Concatenation():
            lows, highs = ([side[source] for source in step.sources] for side in (bounds.lower, bounds.upper))
            return torch.cat(lows, dim=step.axis + 1), torch.cat(highs, dim=step.axis + 1)


def _tighten(place: int, reader: Activation, program: Program, region: Region, bounds: Bounds) -> None:
    """Replace the interval at one place by what backward rows prove, where the activation is loose and that is tighter.

    First from below; where that alone makes the activation exact, nothing is sought from above.
    """
    lower, upper = bounds.lower[place], bounds.upper[place]
    for sign in (1.0, -1.0):
        loose = lines(reader, lower, upper).loose.flatten(1).nonzero()
        found = _extremes(place, loose, sign, program, region, bounds)
        side = (lower if sign > 0 else upper).flatten(1).clone()
        here = side[loose[:, 0], loose[:, 1]]
        side[loose[:, 0], loose[:, 1]] = torch.maximum(here, found) if sign > 0 else torch.minimum(here, -found)
        if sign > 0:
            lower = side.reshape_as(lower)
        else:
            upper = side.reshape_as(upper)
    bounds.lower[place], bounds.upper[place] = lower, torch.maximum(lower, upper)


def _extremes(place: int, chosen: Tensor, sign: float, program: Program, region: Region, bounds: Bounds) -> Tensor:
    """(R,) below sign times the coordinates `chosen` (R, 2: sample, flat coordinate) at one place, rounded down."""
    shape = program.steps[place].shape
    widest = max(math.prod(step.shape) for step in program.steps[: place + 1])
    at_once = max(1, CHUNK // (widest * region.centre.element_size()))
    found = [region.centre.new_zeros(0)]
    sizes = bounds.sizes()
    for part in torch.split(chosen, at_once) if len(chosen) else ():
        weights = region.centre.new_zeros(len(part), math.prod(shape))
        weights[torch.arange(len(part)), part[:, 1]] = sign
        form = pulled_back(program, Rows(place, weights.reshape(-1, *shape), part[:, 0]), bounds.lines, sizes)
        found.append(form.minimum(region, close=False).to(region.centre.dtype))
    return torch.cat(found)
