"""What an activation does to the difference of two inputs: one inequality for each neuron, channel, layer or group.

Two inputs drive a neuron apart by z and its answer by w = a z + (b - a) v with v (z - v) >= 0, where [a, b] holds the
slopes of all secants: those of the function, or of the secants that start at one image (local bounds). Sorting
satisfies it after an orthogonal mixing of the channels, summed over each group (`sector`). Summed over a `tie` of
neurons it still holds, which is what a multiplier for a whole channel or layer uses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Source
from robustres.certify.maps.linear_map import Shape
from robustres.certify.maps.nonlinear import Opaque
from robustres.certify.maps.sector import Slopes, sector

TINY = 1e-30

Sharing = Literal["neuron", "channel", "layer"]
SlopeIntervals = Mapping[Node, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class SectorLayer:
    """lower, upper: (N,) slopes of each coordinate after `mixing` (C, C) of the channels, None for the identity.

    tie: (N,) which multiplier belongs to each coordinate, 0 .. ties - 1. shape: of the layer, unflattened.
    """

    lower: Tensor
    upper: Tensor
    tie: Tensor
    ties: int
    shape: Shape
    mixing: Tensor | None = None

    @property
    def width(self) -> Tensor:
        """At or above upper - lower (N,), exactly 0 where they agree."""
        difference = self.upper - self.lower
        exact = (self.lower + difference == self.upper) & ((self.lower == 0) | (self.lower == -self.upper))
        return torch.where(exact | (difference == 0), difference, torch.nextafter(difference, difference + 1))

    def mixed(self, rows: Tensor, *, back: bool = False) -> Tensor:
        """(R, N) in the coordinates of the sectors, or back from them (the transposed mixing)."""
        if self.mixing is None:
            return rows
        matrix = self.mixing.to(rows.dtype)
        image = rows.reshape(len(rows), self.shape[0], rows.shape[1] // self.shape[0])
        return ((matrix.T if back else matrix) @ image).flatten(1)

    def answer(self, rows: Tensor, middle: Tensor, reach: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What differences `rows` (r, N) may become in low rank: middle z + |z| steer (see `fixed_point`).

        middle, reach: (N,) the middle slopes and half the widths, of the precision of the rows. direction: (r, N), of
        norm 1 over the copies. |z| is taken over the r copies and each tie, of the neurons whose slopes differ.
        Returns the answer (r, N), steer = reach direction as a leaf to differentiate by, and |z| (ties,).
        """
        z = self.mixed(rows)
        size = self.over_ties(squares(z).sum(0) * (reach > 0)).clamp_min(TINY).sqrt()
        steer = (reach * direction).detach().requires_grad_(True)
        return self.mixed(middle * z + size[self.tie] * steer, back=True), steer, size

    def over_ties(self, squares: Tensor) -> Tensor:
        """The sums (ties,) of numbers (N,) over each tie."""
        if self.ties == len(self.tie):
            return squares
        return squares.new_zeros(self.ties).index_add_(0, self.tie, squares)


@dataclass(frozen=True, eq=False)
class BoundedLayer:
    """A map of which only |w| <= constant |z| is known; z are all inputs of the node side by side.

    channelwise: whether that holds for every channel of the one input, which has as many: a multiplier for each then.
    """

    constant: float
    shape: Shape
    channelwise: bool = False

    def lengths(self, values: Sequence[Tensor]) -> Tensor:
        """The norms (1,), or (channels,), of values (r, *shape) over everything that shares a multiplier."""
        if self.channelwise:
            each: Tensor = values[0].transpose(0, 1).flatten(1).norm(dim=1)
            return each
        whole: Tensor = torch.cat([part.flatten() for part in values]).norm()
        return whole[None]


Increment = SectorLayer | BoundedLayer


def squares(values: Tensor) -> Tensor:
    """|values|^2, real or complex."""
    return torch.view_as_real(values).square().sum(-1) if values.is_complex() else values.square()


def increments(
    order: Sequence[Node], *, slopes: SlopeIntervals | None = None, sharing: Sharing = "neuron"
) -> dict[Node, Increment]:
    """The inequality of every nonlinear node of a simplified network.

    slopes: nodes whose intervals of slopes are known better than from the function, each (N,) or of the node's shape.
    sharing: which neurons share a multiplier.
    """
    given = slopes or {}
    found: dict[Node, Increment] = {}
    for node in order:
        layer = _increment(node)
        if isinstance(layer, SectorLayer):
            if node in given:
                low, high = (side.detach().to(layer.lower).flatten() for side in given[node])
                layer = replace(layer, lower=low, upper=high)
            layer = _shared(layer, sharing)
        if layer is not None:
            found[node] = layer
    return found


def _increment(node: Node) -> Increment | None:
    piece = node.piece
    if isinstance(piece, Source | Linear):
        return None
    if isinstance(piece, Merge):
        linear = piece.kind == "sum" or (piece.kind == "concatenation" and piece.axis is not None)
        return None if linear else BoundedLayer(1.0, node.shape)
    if isinstance(piece, Elementwise):
        layer = _sector_layer(piece.slopes, node.shape)
        if piece.each is None:
            return layer
        return replace(
            layer, lower=piece.each[0].to(layer.lower).flatten(), upper=piece.each[1].to(layer.upper).flatten()
        )
    assert isinstance(piece, Opaque), piece
    if piece.sorts is not None:
        return _sector_layer(piece.sorts, node.shape)
    return BoundedLayer(piece.bound.upper, node.shape)


def _sector_layer(slopes: Slopes, shape: Shape) -> SectorLayer:
    """Every position of every channel is a neuron of its own; sorted groups at each position share a multiplier."""
    channels = shape[0] if shape else 1
    inner = sector(slopes, channels)
    positions = max(1, torch.Size(shape).numel() // channels)
    tie = inner.tie[:, None] * positions + torch.arange(positions)
    low, high = inner.lower.repeat_interleave(positions), inner.upper.repeat_interleave(positions)
    return SectorLayer(low, high, tie.flatten(), int(tie.max()) + 1, shape, inner.mixing)


def _shared(layer: SectorLayer, sharing: Sharing) -> SectorLayer:
    if sharing == "neuron":
        return layer
    positions = len(layer.tie) // (layer.shape[0] if layer.shape else 1)
    tie = layer.tie // positions if sharing == "channel" else torch.zeros_like(layer.tie)
    return replace(layer, tie=tie, ties=int(tie.max()) + 1)


def on_device(layer: Increment, device: torch.device) -> Increment:
    """The same with its tensors on another device."""
    if isinstance(layer, BoundedLayer):
        return layer
    mixing = None if layer.mixing is None else layer.mixing.to(device)
    return replace(
        layer, lower=layer.lower.to(device), upper=layer.upper.to(device), tie=layer.tie.to(device), mixing=mixing
    )
