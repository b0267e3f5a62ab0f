"""Bounds of the argument of every activation, and of every step: intervals first, backward rows where they decide."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustres.certify.local.backward import Rows, Sizes, pulled_back
from robustres.certify.local.changes import Changes, Choice
from robustres.certify.local.program import Program
from robustres.certify.local.relaxations import Lines, lines
from robustres.certify.local.sets import Region
from robustres.certify.local.steps import Activation, Affine, Concatenation, Input, Step, Total
from robustres.numerics import gamma

# Bytes of one chunk of rows at the widest step, of which a handful are alive at a time.
CHUNK = 4 * 2**20
# Rows count as worth their time where they shorten this share of the intervals by that share of their length.
GAINING, GAIN = 0.1, 0.01


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


@dataclass(frozen=True, eq=False)
class Helped:
    """Slopes of the lines below with which some coordinates at one place are bounded, in place of the common ones.

    coordinates: (K,) flat. signs: (K,) 1 for a bound from below, -1 for one from above. slopes: by activation before
    that place (K, *shape). Whatever they are, what follows is a bound.
    """

    coordinates: Tensor
    signs: Tensor
    slopes: Mapping[int, Tensor]


def bounded(
    program: Program,
    region: Region,
    *,
    within: Bounds | None = None,
    rows: bool = True,
    helped: Mapping[int, Helped] | None = None,
    changes: Changes | None = None,
) -> Bounds:
    """Bounds of every step on the region, in the program's precision; with the charge of rounding in float64.

    within: other bounds that hold on the region, which are kept where they are tighter. rows: False: intervals alone.
    helped, changes: for a region of one sample. changes: begun there; they narrow intervals before rows do, and without
    rows from where rows added hardly anything.
    """
    bounds, worth = Bounds(), True
    region = region.to(program.dtype)
    readers = {step.source: step for step in program.steps if isinstance(step, Activation)}
    for place, step in enumerate(program.steps):
        lower, upper = _interval(place, step, program, region, bounds)
        if within is not None:
            lower, upper = torch.maximum(lower, within.lower[place]), torch.minimum(upper, within.upper[place])
        bounds.lower.append(lower)
        bounds.upper.append(upper)
        if changes is not None:
            changes.follow(place, (bounds.lower, bounds.upper))
        if place in readers and rows and not _exact_by_interval(step, region):
            narrowed = _narrow(place, readers[place], changes, bounds)
            before = bounds.lower[place], bounds.upper[place]
            if worth or not narrowed or place in (helped or {}):
                _tighten(place, readers[place], program, region, bounds, (helped or {}).get(place))
                worth = not (narrowed and bounds.lines) or _gained(
                    readers[place], before, (bounds.lower[place], bounds.upper[place])
                )
    return bounds


def followed(program: Program, region: Region, centre: Bounds, choice: Choice) -> Changes:
    """The changes around a region's centre (one sample, float64), none yet, for `bounded`. centre: bounds there."""
    return Changes(program, region, (centre.lower, centre.upper), choice)


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


def _narrow(place: int, reader: Activation, changes: Changes | None, bounds: Bounds) -> bool:
    """Intersect the interval of what leaves an activation loose with what the changes around the image prove; whether
    they say anything."""
    lower, upper = bounds.lower[place], bounds.upper[place]
    loose = lines(reader, lower, upper).loose[0].flatten().nonzero().flatten()
    found = None if changes is None else changes.narrowed(place, loose)
    if found is None or not bool(torch.isfinite(found[0]).all()):
        return False
    low, high = lower.flatten().clone(), upper.flatten().clone()
    low[loose] = torch.maximum(low[loose], found[0].to(low))
    high[loose] = torch.minimum(high[loose], found[1].to(high))
    bounds.lower[place] = low.reshape_as(lower)
    bounds.upper[place] = torch.maximum(low, high).reshape_as(upper)
    return True


def _gained(reader: Activation, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> bool:
    """Whether enough of the intervals that left an activation loose became shorter."""
    loose = lines(reader, *before).loose
    shorter = after[1] - after[0] < (1 - GAIN) * (before[1] - before[0])
    return bool((loose & shorter).sum() > GAINING * loose.sum())


def _tighten(
    place: int, reader: Activation, program: Program, region: Region, bounds: Bounds, helped: Helped | None
) -> None:
    """Replace the interval at one place by what backward rows prove, where the activation is loose and that is tighter.

    First from below; where that alone makes the activation exact, nothing is sought from above.
    """
    lower, upper = bounds.lower[place], bounds.upper[place]
    for sign in (1.0, -1.0):
        mask = lines(reader, lower, upper).loose.flatten(1).clone()
        found = []
        if helped is not None:
            mine = helped.signs == sign
            chosen, slopes = helped.coordinates[mine], {at: values[mine] for at, values in helped.slopes.items()}
            mask[0, chosen] = False
            pairs = torch.stack([torch.zeros_like(chosen), chosen], dim=1)
            found.append((pairs, extremes(place, pairs, sign, program, region, bounds, slopes)))
        loose = mask.nonzero()
        found.append((loose, extremes(place, loose, sign, program, region, bounds)))
        side = (lower if sign > 0 else upper).flatten(1).clone()
        for at, values in found:
            here = side[at[:, 0], at[:, 1]]
            side[at[:, 0], at[:, 1]] = torch.maximum(here, values) if sign > 0 else torch.minimum(here, -values)
        if sign > 0:
            lower = side.reshape_as(lower)
        else:
            upper = side.reshape_as(upper)
    bounds.lower[place], bounds.upper[place] = lower, torch.maximum(lower, upper)


def extremes(
    place: int,
    chosen: Tensor,
    sign: float,
    program: Program,
    region: Region,
    bounds: Bounds,
    slopes: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """(R,) below sign times the coordinates `chosen` (R, 2: sample, flat coordinate) at one place, rounded down.

    slopes: as in `Rows`.
    """
    shape = program.steps[place].shape
    widest = max(math.prod(step.shape) for step in program.steps[: place + 1])
    at_once = max(1, CHUNK // (widest * region.centre.element_size()))
    found = [region.centre.new_zeros(0)]
    sizes = bounds.sizes()
    for start in range(0, len(chosen), at_once):
        part = slice(start, start + at_once)
        weights = unit_rows(chosen[part, 1], shape, region.centre.new_full((), sign))
        given = {at: values[part].to(weights) for at, values in (slopes or {}).items()}
        form = pulled_back(program, Rows(place, weights, chosen[part, 0], given), bounds.lines, sizes)
        found.append(form.minimum(region, close=False).to(region.centre.dtype))
    return torch.cat(found)


def unit_rows(coordinates: Tensor, shape: tuple[int, ...], signs: Tensor) -> Tensor:
    """(R, *shape) one row for each flat coordinate: its sign there, 0 elsewhere."""
    rows = signs.new_zeros(len(coordinates), math.prod(shape))
    rows[torch.arange(len(coordinates), device=rows.device), coordinates] = signs
    return rows.reshape(-1, *shape)
