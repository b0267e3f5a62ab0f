"""Multipliers of a network of images by the fixed-point iteration on a torus, at the relevant frequencies.

At the optimum, few frequencies carry the change of the input, so most of the search is restricted to those. Nothing
here has to be exact: what the multipliers prove is checked at every frequency.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from robustres.certify.blocks.fixed_point import FixedPoint, search
from robustres.certify.blocks.increments import Increment, SectorLayer, spread
from robustres.certify.blocks.torus_bound import Frequencies
from robustres.certify.blocks.torus_network import Region
from robustres.certify.graph.network import Linear, Node
from robustres.certify.maps.linear_map import Shape

COPIES = 2
CHUNK = 64  # frequencies whose matrices are computed in double precision at once


def search_at(
    region: Region, layers: Mapping[Node, Increment], frequencies: Tensor, *, steps: int, tolerance: float
) -> FixedPoint:
    """The fixed point of a region at given frequencies (F, 2), with multipliers and sizes keyed by the region's nodes.

    `change` is (copies, C, residues, F).
    """
    made: dict[Node, Node] = {}
    laid: dict[Node, Increment] = {}
    maps: dict[Node, Callable[[Tensor], Tensor]] = {}
    for node in region.order:
        shape = (node.shape[0], *region.multiplicity[node], len(frequencies))
        made[node] = replace(node, inputs=tuple(made[parent] for parent in node.inputs), shape=shape)
        layer = layers.get(node)
        if isinstance(layer, SectorLayer):
            laid[made[node]] = spread(layer, shape)
        if isinstance(node.piece, Linear):
            maps[made[node]] = _product(_values(region, node, node.piece, frequencies), shape)
    order = list(made.values())
    point = search(order, laid, copies=COPIES, steps=steps, tolerance=tolerance, dtype=torch.complex64, maps=maps)
    return replace(
        point,
        multipliers={node: point.multipliers[made[node]] for node in layers},
        sizes={node: point.sizes[made[node]] for node in layers},
    )


def critical(point: FixedPoint, count: int) -> Tensor:
    """Indices of the frequencies that carry most of the input's change."""
    power = point.change.abs().square().flatten(0, -2).sum(0)
    return power.topk(min(count, len(power))).indices


def entries(region: Region) -> int:
    """Number of entries in the matrices of one frequency."""
    maps = [node for node in region.order if isinstance(node.piece, Linear)]
    return sum(region.channels(node) * region.channels(node.inputs[0]) for node in maps)


def _values(region: Region, node: Node, piece: Linear, frequencies: Tensor) -> Tensor:
    found = Frequencies(region, frequencies).polynomial(node, piece.map)
    chunks = [Frequencies(region, part).values(node, found) for part in torch.split(frequencies, CHUNK)]
    return torch.cat([chunk.to(torch.complex64) for chunk in chunks])


def _product(values: Tensor, shape: Shape) -> Callable[[Tensor], Tensor]:
    """The map from (r, ..., F) to (r, *shape) by one matrix per frequency (F, m, n)."""

    def apply(x: Tensor) -> Tensor:
        columns = x.flatten(1, -2).movedim(-1, 0)  # (F, r, n)
        return (columns @ values.mT).movedim(0, -1).reshape(len(x), *shape)

    return apply
