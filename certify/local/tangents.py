"""Activations on one side of their tangents at the image: what a row gives up of it makes its largest change smaller.

Let phi be convex, s a slope of a tangent at the argument z0 at the image. Then h = phi(z) - phi(z0) - s (z - z0) >= 0,
so a row minus m h with m >= 0 never exceeds the row, and equals it at the image; for a concave function m <= 0.
A row that depends on phi(z) with the positive coefficient m depends on s z instead, and no longer on the activation.
The sectors of `quadratic` bound the change of such a row on both sides, though only its decrease is in question.
Without this, they count what convexity rules out. The multipliers are found by ascent from the coefficients of the
linearised network, between steps of the fixed point.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustres.certify.blocks.fixed_point import LOOK, OVER, OVER_FROM, FixedPoint, Iteration, merged
from robustres.certify.blocks.increments import BoundedLayer, SectorLayer
from robustres.certify.graph.network import Merge, Node, Source
from robustres.certify.local.intermediate import Bounds
from robustres.certify.local.program import Program
from robustres.certify.local.secants import tangent_at
from robustres.certify.local.steps import Activation
from robustres.certify.maps.linear_map import as_rows

# Steps of the fixed point before the first of the multipliers, between two of them, and after the last one.
BEFORE, EVERY, REST = 9, 3, 4
# First step of a multiplier, relative to its coefficient in the linearised network (and a share of the mean one); where
# a search is continued, a smaller one.
FIRST, USUAL, AGAIN = 0.1, 0.1, 0.02
GROWTH, FALL = 1.2, 0.5


@dataclass(frozen=True, eq=False)
class Tangent:
    """argument: the node that computes the activation's argument. slope: (N,) of the tangent. sign: (N,) 1 where the
    activation lies above it, -1 where below, 0 where this is not certain or of no use."""

    argument: Node
    slope: Tensor
    sign: Tensor


Tangents = Mapping[Node, Tangent]


def tangents(program: Program, centre: Bounds) -> dict[Node, Tangent]:
    """Of every activation of two pieces in the simplified network. centre: proved at the image, one sample.

    Slopes are numbers of float32, so that their products with multipliers in float32 are exact in float64.
    """
    found = {}
    for node, place in program.scalar_nodes.items():
        step = program.steps[place]
        assert isinstance(step, Activation)
        low, high = (side[step.source][0].to(torch.float64) for side in (centre.lower, centre.upper))
        tangent = tangent_at(step.function, low, high)
        if tangent is None:
            continue
        slope, sign = tangent
        sign = torch.where(slope == slope.float(), sign, 0.0)
        found[node] = Tangent(node.inputs[0], slope.flatten(), sign.flatten())
    return found


def given_up(known: Tangents, multipliers: Mapping[Node, Tensor], count: int) -> list[tuple[Node, Tensor]]:
    """Rows (count, N) of the changes of nodes, to be added to `count` rows: minus all multipliers times the distances.

    multipliers: of any origin; what is not valid is left out.
    """
    parts = []
    for node, tangent in known.items():
        given = multipliers.get(node)
        if given is None or tuple(given.shape) != (count, len(tangent.sign)):
            continue
        mine = given.to(tangent.sign.device, torch.float32).to(torch.float64)
        mine = torch.where((mine * tangent.sign > 0) & torch.isfinite(mine), mine, 0.0)
        parts += [(node, -mine), (tangent.argument, mine * tangent.slope)]
    return parts


class OneSided(Iteration):
    """The fixed point for rows (R, outputs) that give up multiples of distances from tangents; `begin` comes first."""

    def begin(self, known: Tangents, given: Mapping[Node, Tensor]) -> None:
        """given: (R, N) multipliers by node; by default, those that remove the activations from the linearised rows."""
        assert self.rows is not None
        self.known: dict[Node, Tangent] = {}
        self.signs: dict[Node, Tensor] = {}
        for node, one in known.items():
            layer = self.layers.get(node)
            if isinstance(layer, SectorLayer):
                sign = one.sign * (layer.width > 0).to(one.sign)
                self.known[node], self.signs[node] = one, sign.to(self.device, self.dtype)
        self.slopes = {node: one.slope.to(self.device, self.dtype) for node, one in self.known.items()}
        self.given_up: dict[Node, Tensor] = {}
        self.lengths: dict[Node, Tensor] = {}
        self.last: dict[Node, Tensor] = {}
        for node, size in self._coefficients(self.rows).items():
            own = given.get(node)
            self.given_up[node] = self._valid(node, size if own is None else own.to(size))
            first = FIRST if own is None else AGAIN
            self.lengths[node] = first * (size.abs() + USUAL * size.abs().mean())

    def _valid(self, node: Node, values: Tensor) -> Tensor:
        return torch.where(values * self.signs[node] > 0, values, 0.0)

    def _coefficients(self, rows: Tensor) -> dict[Node, Tensor]:
        """(R, N) of the rows in the answers of these activations, in a network with the slopes at the image."""
        values: dict[Node, Tensor] = {}
        answers: dict[Node, Tensor] = {}
        with torch.enable_grad():
            for node in self.order:
                piece, layer, inputs = node.piece, self.layers.get(node), [values[parent] for parent in node.inputs]
                if isinstance(piece, Source):
                    values[node] = rows.new_zeros(len(rows), *node.shape).requires_grad_()
                elif node in self.maps:
                    values[node] = self.maps[node](inputs[0])
                elif node in self.known:
                    answers[node] = as_rows(inputs[0]) * self.slopes[node]
                    values[node] = answers[node].reshape(-1, *node.shape)
                elif isinstance(layer, SectorLayer):
                    mean = layer.mixed(layer.mixed(as_rows(inputs[0])) * self.half[node][0], back=True)
                    values[node] = mean.reshape(-1, *node.shape)
                elif isinstance(piece, Merge) and not isinstance(layer, BoundedLayer):
                    values[node] = merged(piece, inputs)
                else:
                    values[node] = rows.new_zeros(len(rows), *node.shape)
            picked = (as_rows(values[self.order[-1]]) * rows).sum()
            if not answers or not picked.requires_grad:
                return {node: rows.new_zeros(len(rows), len(self.signs[node])) for node in answers}
            found = torch.autograd.grad(picked, list(answers.values()), materialize_grads=True)
        return dict(zip(answers, found, strict=True))

    def output(self, values: Mapping[Node, Tensor]) -> Tensor:
        """(r, R) the rows' changes."""
        out = super().output(values)
        self.distances: dict[Node, Tensor] = {}
        for node, one in self.known.items():
            distance = as_rows(values[node]) - self.slopes[node] * as_rows(values[one.argument])
            out = out - distance @ self.given_up[node].T
            self.distances[node] = distance.detach()
        self.out = out.detach()
        return out

    def adjust(self, value: float) -> None:
        """Move all multipliers, each with its own step, which grows while its derivative keeps its sign."""
        for node, distance in self.distances.items():
            slope = self.out.T @ distance / max(value, 1e-30)
            if node in self.last:
                same = slope * self.last[node]
                growth = torch.where(same > 0, GROWTH, torch.where(same < 0, FALL, 1.0))
                self.lengths[node] = self.lengths[node] * growth
            self.last[node] = slope
            move = self.lengths[node] * (4 * slope / distance.norm(dim=0).clamp_min(1e-12)).clamp(-1, 1)
            self.given_up[node] = self._valid(node, self.given_up[node] + move)

    def adjusted(self, steps: int, tolerance: float, *, before: int = BEFORE) -> FixedPoint:
        """Iterate for `steps` steps, less if the norm hardly moves any more."""
        step, last = 0, math.inf
        while True:
            step += 1
            value, x_slope, slopes, sizes = self.sweep()
            if step >= steps or not 0 < value < math.inf:
                return self.found(value, x_slope, slopes, sizes, step)
            if step % LOOK == 0:
                if step > before + LOOK and abs(value - last) <= tolerance * last:
                    steps = min(steps, step + REST)
                last = value
            self.move(x_slope, slopes, OVER if step >= min(before, OVER_FROM) else 0.0)
            if step >= before and step % EVERY == 0 and step < steps - REST:
                self.adjust(value)

    def found(
        self, value: float, x_slope: Tensor, slopes: dict[Node, Tensor], sizes: dict[Node, Tensor], steps: int
    ) -> FixedPoint:
        """With the multipliers."""
        point = super().found(value, x_slope, slopes, sizes, steps)
        return replace(point, tangents=dict(self.given_up)) if self.known else point
