"""The best multipliers of a whole network by a fixed point, without descent (section 3.4 of the mathematics).

The dual of the inequality, in low rank: r copies of the input's difference x, of total norm 1, and for every neuron a
direction g over the copies. A layer with slopes in [a, b] returns w = ((a + b) z + (b - a) |z| g) / 2, with |z| taken
over the copies, which satisfies the inequality v (z - v) >= 0, summed over the copies, with equality. For all x and g,
the norm of the output over all copies is at most the best bound that such multipliers can give. At its maximum, where
every g and x points along the derivative of the norm, (b - a) |derivative| / |z| is the best multiplier. Hence x and g
are set to those directions repeatedly, with over-relaxation, until the norm converges; neither a step size nor a solver
is needed.

Everything here is an estimate or a search. What the multipliers prove is determined by `elimination`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustres.certify.blocks.increments import TINY, BoundedLayer, Increment, SectorLayer, squares
from robustres.certify.graph.network import Linear, Merge, Node, Source
from robustres.certify.maps.linear_map import as_rows, common_device, in_precision

Maps = Mapping[Node, Callable[[Tensor], Tensor]]
OVER = 0.8  # over-relaxation, applied from step OVER_FROM
OVER_FROM = 6
LOOK = 10  # steps between two checks of the growth of the norm


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """value: the norm of the output reached, an estimate of the smallest bound that multipliers of this kind can prove.

    multipliers, sizes: for every nonlinear node, the multiplier (ties,) of each tie and the norm of its z.
    change, directions: x (r, *in_shape), and g (r, N) of every nonlinear node, from which a search can be continued.
    weights: (n,) of the input's coordinates, for a box: sum weights change^2 replaces |change|^2. None for l2.
    tangents: (R, N) by activation, what the rows give up of its distance from its tangents (`local.tangents`).
    """

    value: float
    multipliers: Mapping[Node, Tensor]
    sizes: Mapping[Node, Tensor]
    change: Tensor
    directions: Mapping[Node, Tensor]
    weights: Tensor | None = None
    steps: int = 0
    tangents: Mapping[Node, Tensor] = field(default_factory=dict)


def search(
    order: Sequence[Node],
    layers: Mapping[Node, Increment],
    *,
    rows: Tensor | None = None,
    box: Tensor | None = None,
    copies: int = 16,
    steps: int = 250,
    tolerance: float = 3e-5,
    dtype: torch.dtype = torch.float64,
    start: FixedPoint | None = None,
    maps: Maps | None = None,
) -> FixedPoint:
    """Run the fixed-point iteration on a simplified network for |rows . output change| (by default for all outputs).

    order: the network's nodes, `output.ordered()`. layers: the result of `increments`. box: (n,) half-widths of a box
    around the centre instead of the l2 ball of radius 1. tolerance: the iteration ends when the norm grows relatively
    by less than this in `LOOK` steps.
    maps: used instead of the linear nodes' own maps, on values of type `dtype`, which may then be complex.
    """
    found = Iteration(order, layers, rows, box, copies, dtype, start, maps).run(steps, tolerance)
    if dtype == torch.float32 and not math.isfinite(found.value):  # out of float32's range
        return Iteration(order, layers, rows, box, copies, torch.float64, start, maps).run(steps, tolerance)
    return found


class Iteration:
    """The state x, g and one sweep forward and backward."""

    def __init__(
        self,
        order: Sequence[Node],
        layers: Mapping[Node, Increment],
        rows: Tensor | None,
        box: Tensor | None,
        copies: int,
        dtype: torch.dtype,
        start: FixedPoint | None,
        maps: Maps | None,
    ) -> None:
        self.order, self.layers, self.dtype = order, layers, dtype
        own = {node: node.piece.map for node in order if isinstance(node.piece, Linear)}
        self.device = common_device(own.values())
        self.maps = {node: in_precision(map_, dtype) for node, map_ in own.items()} if maps is None else maps
        self.rows = None if rows is None else rows.to(self.device, dtype)
        self.box = None if box is None else box.to(self.device, dtype).reshape(1, *order[0].shape)
        draw, drawn = torch.Generator().manual_seed(0), torch.complex128 if dtype.is_complex else torch.float64
        self.half = {}
        for node, layer in layers.items():
            if isinstance(layer, SectorLayer):
                middle, reach = (layer.lower + layer.upper) / 2, (layer.upper - layer.lower) / 2
                self.half[node] = middle.to(self.device, dtype.to_real()), reach.to(self.device, dtype.to_real())
        if start is None:
            x = torch.randn(copies, *order[0].shape, generator=draw, dtype=drawn)
            self.x = self._onto_set(x.to(self.device, dtype))
            self.g: dict[Node, Tensor] = {}
            for node, layer in layers.items():
                g = torch.randn(copies, torch.Size(node.shape).numel(), generator=draw, dtype=drawn)
                self.g[node] = _unit(layer, g.to(self.device, dtype))
        else:
            self.x = start.change.to(self.device, dtype)
            self.g = {node: g.to(self.device, dtype) for node, g in start.directions.items()}

    def run(self, steps: int, tolerance: float) -> FixedPoint:
        """Iterate until the norm converges, or for `steps` steps."""
        last = 0.0
        step = 0
        while True:
            step += 1
            value, x_slope, slopes, sizes = self.sweep()
            done = step >= steps or not math.isfinite(value) or value == 0
            if step % LOOK == 0:
                done |= tolerance > 0 and value <= last * (1 + tolerance)
                last = value
            if done:
                return self.found(value, x_slope, slopes, sizes, step)
            self.move(x_slope, slopes, OVER if step >= OVER_FROM else 0.0)

    def move(self, x_slope: Tensor, slopes: Mapping[Node, Tensor], over: float) -> None:
        """Set x and g to the directions of these derivatives, or beyond them by the share `over`."""
        self.x = self._onto_set((1 + over) * self._onto_set(x_slope) - over * self.x)
        for node, slope in slopes.items():
            layer = self.layers[node]
            self.g[node] = _unit(layer, (1 + over) * _unit(layer, slope) - over * self.g[node])

    def output(self, values: Mapping[Node, Tensor]) -> Tensor:
        """(r, R) what is to be bounded, of the values of all nodes."""
        out = as_rows(values[self.order[-1]])
        return out if self.rows is None else out @ self.rows.T

    def _onto_set(self, x: Tensor) -> Tensor:
        """Scale to total norm 1, or each coordinate, over the copies, to the half-width of the box."""
        length = x.norm() if self.box is None else squares(x).sum(0, keepdim=True).sqrt()
        placed: Tensor = x / length.clamp_min(TINY) * (1.0 if self.box is None else self.box)
        return placed

    def sweep(self) -> tuple[float, Tensor, dict[Node, Tensor], dict[Node, Tensor]]:
        """The norm of the output, its derivatives with respect to x and to the term of each layer that g determines
        (times |z| and the width of the sector, the direction that g should have), and the norms (ties,) of each layer's
        input."""
        x = self.x.detach().requires_grad_(True)
        values: dict[Node, Tensor] = {}
        answers: dict[Node, Tensor] = {}
        sizes: dict[Node, Tensor] = {}
        with torch.enable_grad():
            for node in self.order:
                piece, layer, inputs = node.piece, self.layers.get(node), [values[parent] for parent in node.inputs]
                if isinstance(piece, Source):
                    values[node] = x
                elif node in self.maps:
                    values[node] = self.maps[node](inputs[0])
                elif isinstance(layer, SectorLayer):
                    middle, reach = self.half[node]
                    rows, answers[node], size = layer.answer(as_rows(inputs[0]), middle, reach, self.g[node])
                    sizes[node], values[node] = size.detach(), rows.reshape(-1, *node.shape)
                elif isinstance(layer, BoundedLayer):
                    lengths = layer.input_lengths(inputs).clamp_min(TINY)
                    sizes[node] = lengths.detach()
                    answers[node] = (layer.constant * self.g[node]).detach().requires_grad_(True)
                    rows = lengths[:, None] * answers[node].reshape(len(x), len(lengths), -1)
                    values[node] = rows.reshape(-1, *node.shape)
                else:
                    assert isinstance(piece, Merge)
                    values[node] = merged(piece, inputs)
            size = self.output(values).norm()
            steered = list(answers)
            slopes = torch.autograd.grad(size, [x, *(answers[node] for node in steered)], materialize_grads=True)
        steer = dict(zip(steered, slopes[1:], strict=True))
        for node, (_, reach) in self.half.items():
            steer[node] = 2 * reach * steer[node]
        return float(size.detach()), slopes[0], steer, sizes

    def found(
        self, value: float, x_slope: Tensor, slopes: dict[Node, Tensor], sizes: dict[Node, Tensor], steps: int
    ) -> FixedPoint:
        """Multipliers from the derivatives, whose factor |z| is divided out by `sizes`."""
        multipliers, reaches = {}, {}
        for node, layer in self.layers.items():
            size = sizes[node].to(torch.float64)
            floor = 1e-9 * size.square().mean().sqrt()
            slope = slopes[node].abs().to(torch.float64)
            if isinstance(layer, SectorLayer):
                steep = layer.over_ties(slope.square().sum(0)).sqrt()
                multipliers[node] = value * (steep / size) / size.clamp_min(floor)
            else:
                steep = layer.lengths([slope.reshape(-1, *node.shape)])
                multipliers[node] = value * (steep / size) / size.clamp_min(floor) / max(layer.constant, TINY)
            reaches[node] = size.clamp_min(floor)
        weights = None
        if self.box is not None:
            length = x_slope.to(torch.float64).norm(dim=0).flatten()
            weights = value * length / self.box.to(torch.float64).flatten().clamp_min(TINY)
        directions = {node: g.detach() for node, g in self.g.items()}
        return FixedPoint(value, multipliers, reaches, self.x.detach(), directions, weights, steps)


def merged(piece: Merge, inputs: Sequence[Tensor]) -> Tensor:
    """(r, ...) the sum of values, or all of them side by side."""
    if piece.kind == "sum":
        return torch.stack(list(inputs)).sum(0)
    assert piece.axis is not None
    return torch.cat(list(inputs), dim=1 + piece.axis)


def _unit(layer: Increment, g: Tensor) -> Tensor:
    """Each tie's direction with norm 1 over the copies."""
    if isinstance(layer, BoundedLayer):
        lengths = layer.lengths([g.reshape(-1, *layer.shape)]).clamp_min(TINY)
        direction = g.reshape(len(g), len(lengths), -1) / lengths[:, None]
        return direction.reshape(g.shape)
    sums = layer.over_ties(squares(g).sum(0))
    size = sums.clamp_min(TINY * TINY if sums.dtype == torch.float64 else TINY).sqrt()
    return g / size[layer.tie]
