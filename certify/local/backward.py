"""Backward propagation of linear bounds: what a row of a step's values is at least, as a linear function of the image.

The row is pulled back from step to step. At an affine map it is multiplied by the transpose, at an activation each
coordinate takes the line below the activation where the coefficient is positive and the line above it where it is
negative (Zhang et al. 2018), at a product the planes. Any multipliers of the constraints that hold in a branch may be
added on the way.

Rounding, where `Sizes` are given and everything is in float64: the computed row at each step is taken as it is, and
only the residual of the product that made it is charged, weighted with the size of the true values there. Nothing is
carried on, so the charge does not grow with depth.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustres.certify.local.planes import Planes
from robustres.certify.local.program import Program
from robustres.certify.local.relaxations import Lines, Relaxation
from robustres.certify.local.sets import Region, weighed
from robustres.certify.local.steps import Activation, Affine, Concatenation, Input, Known, Product, Total
from robustres.numerics import gamma


@dataclass(frozen=True, eq=False)
class Rows:
    """R linear functions of the values at one step.

    weights: (R, *shape of the step). owner: (R,) the sample, or the branch, whose bounds each row may use.
    slopes: for some activations (R, *shape), of the lines below in place of the common ones, cut to what is valid.
    multipliers: for some activations (R, *shape), added to the row at the activation's input: of z >= 0 not positive,
    of z <= 0 not negative, elsewhere 0.
    """

    place: int
    weights: Tensor
    owner: Tensor
    slopes: Mapping[int, Tensor] = field(default_factory=dict)
    multipliers: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Sizes:
    """At or above the absolute values of every step, and of every affine step with all its terms added up.

    steps, affine: by place, (N, *shape) float64; empty in a search. noise: by place, of what the network's own rounding
    adds (N, *shape).
    """

    steps: Sequence[Tensor]
    affine: Mapping[int, Tensor]
    noise: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Form:
    """<row, value> >= <weights, x> + constant - charge on the owner's region; weights (R, *image), the others (R,)."""

    weights: Tensor
    constant: Tensor
    charge: Tensor
    owner: Tensor

    def minimum(self, region: Region, eps: Tensor | None = None, *, close: bool = True) -> Tensor:
        """(R,) below the form on the owner's region; proved where the form was charged. eps, close: as in `Region`."""
        descent = region.descent(self.weights, self.owner, eps, close=close)
        centre = weighed(self.weights, region.centre.to(self.weights), self.owner)
        rounding = region.charge(self.weights, self.owner, descent) if self.weights.dtype == torch.float64 else 0.0
        return self.constant + centre - descent - self.charge - rounding


def pulled_back(
    program: Program,
    rows: Rows,
    lines: Mapping[int, Relaxation],
    sizes: Sizes | None = None,
    *,
    passed: dict[int, Tensor] | None = None,
) -> Form:
    """The rows as linear functions of the image, by the lines and planes of the steps before them.

    passed: is filled with the row at each activation's answer (R, *shape), before it takes the lines.
    """
    noise = {} if sizes is None else sizes.noise
    sizes = None if sizes is None or not sizes.steps else sizes
    waiting = {rows.place: rows.weights}
    parts: dict[int, int] = {}
    owner = rows.owner
    constant = torch.zeros(len(owner), dtype=torch.float64, device=owner.device)
    charge = torch.zeros_like(constant)

    def send(place: int, row: Tensor) -> None:
        if place in waiting:
            waiting[place] = waiting[place] + row
            parts[place] = parts.get(place, 0) + 1
        else:
            waiting[place] = row

    for place in range(rows.place, 0, -1):
        row = waiting.pop(place, None)
        if row is None:
            continue
        if sizes is not None and place in parts:
            charge = charge + gamma(parts[place]) * weighed(row.abs(), sizes.steps[place], owner)
        if place in noise:
            charge = charge + weighed(row.abs(), noise[place], owner)
        step = program.steps[place]
        match step:
            case Affine():
                constant = constant + weighed(row, step.constant[None], owner)
                if sizes is not None:
                    charge = charge + gamma(step.charged + math.prod(step.shape) + 8) * weighed(
                        row.abs(), sizes.affine[place], owner
                    )
                send(step.source, step.map.adjoint(row))
            case Activation():
                if passed is not None:
                    passed[place] = row
                line = lines[place]
                assert isinstance(line, Lines)
                before = _before(row, line, owner, rows.slopes.get(place))
                offset, offset_size = _offset(row, line, owner)
                size = before.abs()
                if place in rows.multipliers:
                    before = before + rows.multipliers[place]
                    size = size + before.abs()  # either may be the larger one
                constant = constant + offset
                if sizes is not None:
                    charge = charge + gamma(math.prod(step.shape) + 8) * offset_size
                    charge = charge + gamma(4) * weighed(size, sizes.steps[step.source], owner)
                send(step.source, before)
            case Product():
                plane = lines[place]
                assert isinstance(plane, Planes)
                offset, offset_size = _offset(row, plane, owner)
                constant = constant + offset
                if sizes is not None:
                    charge = charge + gamma(math.prod(step.shape) + 8) * offset_size
                for source, slope in zip(step.sources, (plane.first, plane.second), strict=True):
                    before = row * _of(slope, owner)
                    if sizes is not None:
                        charge = charge + gamma(4) * weighed(before.abs(), sizes.steps[source], owner)
                    send(source, before)
            case Known():
                send(step.source, row)
            case Total():
                for source in step.sources:
                    send(source, row)
            case Concatenation():
                for source, part in zip(
                    step.sources, torch.split(row, list(step.sizes), dim=step.axis + 1), strict=True
                ):
                    send(source, part)
            case Input():
                raise AssertionError("only the first step is an input")
    weights = waiting[0] if 0 in waiting else rows.weights.new_zeros(len(owner), *program.steps[0].shape)
    if sizes is not None:
        if 0 in parts:
            charge = charge + gamma(parts[0]) * weighed(weights.abs(), sizes.steps[0], owner)
        charge = charge * (1 + 1e-6) + gamma(4 * len(program.steps)) * constant.abs()
    return Form(weights, constant, charge, owner)


def _before(row: Tensor, lines: Lines, owner: Tensor, slopes: Tensor | None) -> Tensor:
    """The row before an activation."""
    lower_slope = _of(lines.lower_slope, owner)
    if slopes is not None:
        lower_slope = torch.minimum(torch.maximum(slopes, _of(lines.flattest, owner)), _of(lines.steepest, owner))
    return row.clamp_min(0) * lower_slope + row.clamp_max(0) * _of(lines.upper_slope, owner)


def _offset(row: Tensor, relaxation: Relaxation, owner: Tensor) -> tuple[Tensor, Tensor]:
    """What the offsets of lines or planes add, and the size of what was added up."""
    above, below = row.clamp_min(0), row.clamp_max(0)
    lower, upper = relaxation.lower_offset, relaxation.upper_offset
    offset = weighed(above, lower, owner) + weighed(below, upper, owner)
    if row.dtype != torch.float64:
        return offset, offset
    return offset, weighed(above, lower.abs(), owner) - weighed(below, upper.abs(), owner)


def _of(values: Tensor, owner: Tensor) -> Tensor:
    """The owners' values; left to broadcast where there is one sample."""
    return values if len(values) == 1 else values[owner]
