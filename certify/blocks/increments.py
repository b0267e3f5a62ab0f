"""The effect of an activation on the difference of two inputs: one inequality per neuron, channel, layer or group.

If the inputs of a neuron differ by z, its outputs differ by w = a z + (b - a) v with v (z - v) >= 0, where [a, b]
contains the slopes of all secants of the function, or of those that start at one image (local bounds). Sorting
satisfies the inequality after an orthogonal mixing of the channels, summed over each group (`sector`). The inequality
also holds summed over a `tie` of neurons, which allows one multiplier for a whole channel or layer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Source
from robustres.certify.maps.linear_map import Shape
from robustres.certify.maps.nonlinear import Opaque, windows_per_pixel
from robustres.certify.maps.sector import Slopes, sector

TINY = 1e-30

Sharing = Literal["neuron", "channel", "layer"]
SlopeIntervals = Mapping[Node, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class SectorLayer:
    """lower, upper: (N,) slopes of each coordinate after `mixing` (C, C) of the channels, None for the identity.

    tie: (N,) index of each coordinate's multiplier, 0 .. ties - 1. shape: shape of the layer, not flattened.
    """

    lower: Tensor
    upper: Tensor
    tie: Tensor
    ties: int
    shape: Shape
    mixing: Tensor | None = None

    @property
    def width(self) -> Tensor:
        """Upper bound of upper - lower (N,), exactly 0 where the two agree."""
        difference = self.upper - self.lower
        exact = (self.lower + difference == self.upper) & ((self.lower == 0) | (self.lower == -self.upper))
        return torch.where(exact | (difference == 0), difference, torch.nextafter(difference, difference + 1))

    def mixed(self, rows: Tensor, *, back: bool = False) -> Tensor:
        """(R, N) in the coordinates of the sectors, or back from them (the transposed mixing)."""
        if self.mixing is None:
            return rows
        matrix = self.mixing.to(rows.dtype)
        image = rows.reshape(len(rows), self.shape[0], rows.shape[1] // self.shape[0])
        # One product of two matrices, which is much faster than one for each row.
        turned: Tensor = torch.tensordot(image, matrix, ([1], [0 if back else 1]))
        return turned.movedim(-1, 1).flatten(1)

    def answer(self, rows: Tensor, middle: Tensor, reach: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output differences for input differences `rows` (r, N) in low rank: middle z + |z| steer (see `fixed_point`).

        middle, reach: (N,) the mean slopes and half the widths, in the precision of the rows. direction: (r, N), of
        norm 1 over the copies. |z| is taken over the r copies and over the neurons of each tie whose slopes differ.
        Returns the output (r, N), steer = reach direction as a leaf for differentiation, and |z| (ties,).
        """
        z = self.mixed(rows)
        size = self.over_ties(squares(z).sum(0) * (reach > 0)).clamp_min(TINY).sqrt()
        steer = (reach * direction).detach().requires_grad_(True)
        return self.mixed(middle * z + size[self.tie] * steer, back=True), steer, size

    def over_ties(self, squares: Tensor) -> Tensor:
        """Sums (ties,) of the numbers (N,) over each tie."""
        if self.ties == len(self.tie):
            return squares
        return squares.new_zeros(self.ties).index_add_(0, self.tie, squares)


@dataclass(frozen=True, eq=False)
class BoundedLayer:
    """A map of which only |w| <= constant |z| is known, with z all inputs of the node concatenated.

    channelwise: whether this holds for every channel of a single input with the same channels, each of which then has
    its own multiplier. counts: (H, W) of the input's positions; |z|^2 is then the sum of counts z^2.
    """

    constant: float
    shape: Shape
    channelwise: bool = False
    counts: Tensor | None = None

    def input_lengths(self, values: Sequence[Tensor]) -> Tensor:
        """`lengths` of values of its inputs."""
        if self.counts is None:
            return self.lengths(values)
        return self.lengths([values[0] * self.counts.sqrt().to(values[0].device, values[0].dtype)])

    def lengths(self, values: Sequence[Tensor]) -> Tensor:
        """The norms (1,), or (channels,), of values (r, *shape) over all values that share a multiplier."""
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

    slopes: nodes with tighter intervals of slopes than those of the function, each (N,) or of the node's shape.
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
    """Every position of every channel is one neuron; the sorted groups at each position share a multiplier."""
    channels = shape[0] if shape else 1
    lower, upper, groups, mixing = sector(slopes, channels)
    positions = max(1, torch.Size(shape).numel() // channels)
    tie = groups[:, None] * positions + torch.arange(positions)
    low, high = lower.repeat_interleave(positions), upper.repeat_interleave(positions)
    return SectorLayer(low, high, tie.flatten(), int(tie.max()) + 1, shape, mixing)


def _shared(layer: SectorLayer, sharing: Sharing) -> SectorLayer:
    if sharing == "neuron":
        return layer
    positions = len(layer.tie) // (layer.shape[0] if layer.shape else 1)
    tie = layer.tie // positions if sharing == "channel" else torch.zeros_like(layer.tie)
    return replace(layer, tie=tie, ties=int(tie.max()) + 1)


def on_device(layer: Increment, device: torch.device) -> Increment:
    """A copy of the layer with its tensors on another device."""
    if isinstance(layer, BoundedLayer):
        return layer
    mixing = None if layer.mixing is None else layer.mixing.to(device)
    return replace(
        layer, lower=layer.lower.to(device), upper=layer.upper.to(device), tie=layer.tie.to(device), mixing=mixing
    )


def spread(layer: SectorLayer, shape: Shape, *, cut: bool = False) -> SectorLayer:
    """A layer of the given shape with one inequality per channel. cut: some of its outputs may be 0 instead."""
    old, new = math.prod(layer.shape[1:]), math.prod(shape[1:])
    lower = layer.lower.reshape(-1, old).amin(1).repeat_interleave(new)
    upper = layer.upper.reshape(-1, old).amax(1).repeat_interleave(new)
    tie = layer.tie[::old].repeat_interleave(new)
    if cut:
        lower, upper = lower.clamp_max(0), upper.clamp_min(0)
    return SectorLayer(lower, upper, tie, layer.ties, shape, layer.mixing)


def windows_of_residues(windows: Sequence[Tensor], shape: Shape) -> Tensor:
    """(s_1, s_2): the largest number of windows that contain the same pixel, by its position modulo the strides s."""
    axes = []
    for side, pixels in zip(shape[1:], windows, strict=True):
        stride = max(1, round(side / len(pixels)))
        used = windows_per_pixel(pixels, side).to(torch.float64)
        axes.append(torch.stack([used[residue::stride].max() for residue in range(stride)]))
    return torch.outer(*axes)
