"""Bounds of every step: by intervals, and where a relaxation depends on them also by backward propagation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from robustres.certify.local.backward import Rows, Sizes, pulled_back
from robustres.certify.local.changes import Changes, Choice
from robustres.certify.local.forward import introduced
from robustres.certify.local.program import Program
from robustres.certify.local.relaxations import Relaxation, loose, relaxation
from robustres.certify.local.sets import Region
from robustres.certify.local.steps import (
    Activation,
    Affine,
    Concatenation,
    Input,
    Known,
    Product,
    Step,
    Total,
)
from robustres.certify.maps.interval import Interval, affine_interval
from robustres.certify.maps.linear_map import as_rows

# Bytes of one chunk of rows at the widest step; a few chunks are in memory at a time.
CHUNK = 4 * 2**20
# Backward rows are worth their time if they shorten this share of the intervals by at least this share of their length.
GAINING, GAIN = 0.2, 0.1
PROBES = 16  # rows that are tried first


class OutOfTimeError(Exception):
    """The time for backward rows ended before all of them were computed."""


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds of every step on the region, and the lines and planes that follow from them.

    lower, upper: by place, (N, *shape). In float32 they belong to a search and prove nothing.
    """

    lower: list[Tensor] = field(default_factory=list)
    upper: list[Tensor] = field(default_factory=list)
    lines: dict[int, Relaxation] = field(default_factory=dict)
    affine: dict[int, Tensor] = field(default_factory=dict)
    noise: dict[int, Tensor] = field(default_factory=dict)

    def sizes(self) -> Sizes | None:
        """Sizes for the charge of rounding; in float32, where nothing is proved, only those of the network's own."""
        if self.lower[0].dtype != torch.float64:
            return Sizes([], {}, self.noise) if self.noise else None
        return Sizes(
            [torch.maximum(low.abs(), high.abs()) for low, high in zip(self.lower, self.upper, strict=True)],
            self.affine,
            self.noise,
        )


@dataclass(frozen=True, eq=False)
class Helped:
    """Slopes of lower lines that replace the common ones for some coordinates at one place.

    coordinates: (K,) flat. signs: (K,) 1 for a bound from below, -1 for one from above. slopes: by activation before
    that place (K, *shape). Any slopes give a valid bound.
    """

    coordinates: Tensor
    signs: Tensor
    slopes: Mapping[int, Tensor]


def bounded(
    program: Program,
    region: Region,
    *,
    rows: bool = True,
    helped: Mapping[int, Helped] | None = None,
    changes: Changes | None = None,
    left: Callable[[], float] | None = None,
) -> Bounds:
    """Bounds of every step on the region, in the program's precision; in float64 all roundings are charged.

    rows: whether to use backward rows at all. helped, changes: for a region of one sample. changes: as `followed`
    returns them; they narrow intervals before rows do, which are then used only where a few of them gain enough. Raises
    UnboundedError if a step has no finite bounds, OutOfTimeError if no seconds are `left` while rows remain.
    """
    bounds = Bounds()
    region = region.to(program.dtype)
    readers = program.readers
    for place, step in enumerate(program.steps):
        lower, upper = _interval(place, step, program, region, bounds)
        if program.runs is not None:
            noise = introduced(step, bounds.lower, bounds.upper, (lower, upper), program.runs)
            if noise is not None:
                bounds.noise[place], lower, upper = noise, lower - noise, upper + noise
        bounds.lower.append(lower)
        bounds.upper.append(upper)
        if changes is not None:
            changes.follow(place, (bounds.lower, bounds.upper))
        if place in readers and rows and not exact_by_interval(program, place, region):
            narrowed = _narrow(place, readers[place], changes, bounds)
            slopes = (helped or {}).get(place)
            if not narrowed or slopes is not None or _worthwhile(place, readers[place], program, region, bounds):
                _tighten(place, readers[place], program, region, bounds, slopes, left)
    return bounds


Readers = Sequence[Activation | Product]


def loose_for(readers: Readers, lower: Tensor, upper: Tensor) -> Tensor:
    """(N, *shape) where a reader would gain by tighter bounds."""
    return torch.stack([loose(reader, lower, upper) for reader in readers]).any(0)


def followed(program: Program, region: Region, centre: Bounds, choice: Choice) -> Changes:
    """Changes without any steps yet, for `bounded`. region: of one sample, float64. centre: bounds at its centre."""
    return Changes(program, region, (centre.lower, centre.upper), choice)


def exact_by_interval(program: Program, place: int, region: Region) -> bool:
    """Whether no row could bound the values of a step more tightly than its interval does."""
    step = program.steps[place]
    return isinstance(step, Input) or (isinstance(step, Affine) and step.source == 0 and region.norm == "linf")


def _interval(place: int, step: Step, program: Program, region: Region, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """A step's interval from those of its sources, rounded outwards in float64."""
    proves = program.dtype == torch.float64
    match step:
        case Input():
            return region.bounds
        case Affine():
            low, high = bounds.lower[step.source], bounds.upper[step.source]
            found, size = affine_interval(
                step.map,
                step.absolute,
                step.constant,
                step.constant_size,
                step.roundings if proves else None,
                low,
                high,
            )
            if proves:
                bounds.affine[place] = size
            return found.low, found.high
        case Activation() | Product():
            bounds.lines[place] = lines = relaxation(step, bounds.lower, bounds.upper)
            return lines.low, lines.high
        case Known():
            low, high = bounds.lower[step.source], bounds.upper[step.source]
            return low.clamp_min(step.low), high.clamp_max(step.high)
        case Total():
            total = reduce(Interval.__add__, (Interval(bounds.lower[s], bounds.upper[s]) for s in step.sources))
            return total.low, total.high
        case Concatenation():
            lows, highs = ([side[source] for source in step.sources] for side in (bounds.lower, bounds.upper))
            return torch.cat(lows, dim=step.axis + 1), torch.cat(highs, dim=step.axis + 1)


def _narrow(place: int, readers: Readers, changes: Changes | None, bounds: Bounds) -> bool:
    """Intersect the intervals of loose coordinates with the bounds by the changes around the image; return whether
    these exist."""
    lower, upper = bounds.lower[place], bounds.upper[place]
    wanted = loose_for(readers, lower, upper)[0].flatten().nonzero().flatten()
    found = None if changes is None else changes.narrowed(place, wanted)
    if found is None or not bool(torch.isfinite(found[0]).all()):
        return False
    low, high = lower.flatten().clone(), upper.flatten().clone()
    low[wanted] = torch.maximum(low[wanted], found[0].to(low))
    high[wanted] = torch.minimum(high[wanted], found[1].to(high))
    bounds.lower[place] = low.reshape_as(lower)
    bounds.upper[place] = torch.maximum(low, high).reshape_as(upper)
    return True


def _worthwhile(place: int, readers: Readers, program: Program, region: Region, bounds: Bounds) -> bool:
    """Whether backward rows would shorten enough of the intervals of loose coordinates, judged by a few of these."""
    loose_ones = loose_for(readers, bounds.lower[place], bounds.upper[place]).flatten().nonzero().flatten()
    if not len(loose_ones):
        return False
    chosen = loose_ones[:: math.ceil(len(loose_ones) / PROBES)]
    pairs = torch.stack([torch.zeros_like(chosen), chosen], dim=1)
    low, high = (side[place].flatten()[chosen] for side in (bounds.lower, bounds.upper))
    found = [extremes(place, pairs, sign, program, region, bounds) for sign in (1.0, -1.0)]
    shorter = torch.minimum(high, -found[1]) - torch.maximum(low, found[0]) < (1 - GAIN) * (high - low)
    return bool(shorter.sum() > GAINING * len(chosen))


def _tighten(
    place: int,
    readers: Readers,
    program: Program,
    region: Region,
    bounds: Bounds,
    helped: Helped | None,
    left: Callable[[], float] | None,
) -> None:
    """Tighten the interval at one place by backward rows for the coordinates that leave a reader loose.

    Lower bounds come first; coordinates that these make exact need no upper bound.
    """
    lower, upper = bounds.lower[place], bounds.upper[place]
    for sign in (1.0, -1.0):
        mask = as_rows(loose_for(readers, lower, upper)).clone()
        found = []
        if helped is not None:
            mine = helped.signs == sign
            chosen, slopes = helped.coordinates[mine], {at: values[mine] for at, values in helped.slopes.items()}
            mask[0, chosen] = False
            pairs = torch.stack([torch.zeros_like(chosen), chosen], dim=1)
            found.append((pairs, extremes(place, pairs, sign, program, region, bounds, slopes, left=left)))
        wanted = mask.nonzero()
        found.append((wanted, extremes(place, wanted, sign, program, region, bounds, left=left)))
        side = as_rows(lower if sign > 0 else upper).clone()
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
    *,
    left: Callable[[], float] | None = None,
) -> Tensor:
    """(R,) at or below sign times the coordinates `chosen` (R, 2: sample, flat coordinate) at one place.

    slopes: as in `Rows`.
    """
    shape = program.steps[place].shape
    widest = max(math.prod(step.shape) for step in program.steps[: place + 1])
    at_once = max(1, CHUNK // (widest * region.centre.element_size()))
    found = [region.centre.new_zeros(0)]
    sizes = bounds.sizes()
    for start in range(0, len(chosen), at_once):
        if left is not None and left() <= 0:
            raise OutOfTimeError
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
