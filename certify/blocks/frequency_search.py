"""Multipliers of a network of images by the fixed-point iteration on a torus, at the relevant frequencies.

At the optimum, few frequencies carry the change of the input, so most of the search is restricted to those. Nothing
here has to be exact: what the multipliers prove is checked at every frequency.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from robustres.certify.blocks.cost import COMPLEX, NOMINAL, PER_NODE
from robustres.certify.blocks.fixed_point import FixedPoint, search
from robustres.certify.blocks.frequencies import Frequencies, Start
from robustres.certify.blocks.increments import Increment, SectorLayer, spread
from robustres.certify.blocks.torus_network import Region
from robustres.certify.graph.network import Linear, Node, Source
from robustres.certify.maps.linear_map import Identity, Shape

COPIES = 2
# Of a refinement: copies, since a single frequency has no others to share the multipliers with; steps; tolerance.
FINE_COPIES, FINE_STEPS, FINE_TOLERANCE = 16, 100, 1e-5
CHUNK = 64  # frequencies whose matrices are computed in double precision at once


def search_at(
    region: Region,
    layers: Mapping[Node, Increment],
    frequencies: Tensor,
    *,
    steps: int,
    tolerance: float,
    copies: int = COPIES,
    root: Tensor | None = None,
    rows: Tensor | None = None,
) -> FixedPoint:
    """The fixed point of a region at given frequencies (F, 2), with multipliers and sizes keyed by the region's nodes.

    `change` is (copies, C, residues, F).
    root: (1 or C residues,), the change of the input is root times one of norm 1. rows: (F, R, C residues) complex, of
    the output, by default all of it.
    """
    made: dict[Node, Node] = {}
    laid: dict[Node, Increment] = {}
    maps: dict[Node, Callable[[Tensor], Tensor]] = {}
    for node in region.order:
        shape = (node.shape[0], *region.multiplicity[node], len(frequencies))
        if node is region.order[0]:
            made[node] = replace(node, piece=Source(), inputs=(), shape=shape)
            if root is not None:
                made[node] = _added(made[node], shape)
                maps[made[node]] = _scaling(root, shape)
            continue
        made[node] = replace(node, inputs=tuple(made[parent] for parent in node.inputs), shape=shape)
        layer = layers.get(node)
        if isinstance(layer, SectorLayer):
            laid[made[node]] = spread(layer, shape)
        if isinstance(node.piece, Linear):
            maps[made[node]] = _product(_values(region, node, node.piece, frequencies), shape)
    output = made[region.order[-1]]
    if rows is not None:
        output = _added(output, (rows.shape[1], len(frequencies)))
        maps[output] = _product(rows.to(torch.complex64), output.shape)
    point = search(
        output.ordered(), laid, copies=copies, steps=steps, tolerance=tolerance, dtype=torch.complex64, maps=maps
    )
    found = [node for node in region.order if made[node] in laid]
    return replace(
        point,
        multipliers={node: point.multipliers[made[node]] for node in found},
        sizes={node: point.sizes[made[node]] for node in found},
    )


def refined(
    region: Region,
    layers: Mapping[Node, Increment],
    point: FixedPoint,
    start: Start,
    root: Tensor,
    frequencies: Tensor,
) -> FixedPoint | None:
    """The point with multipliers of this region that are searched for at these frequencies alone; None if that fails.

    A search of the whole network has only a few copies, which at a single frequency are too few to determine the
    multipliers of all channels. start, root: as in `torus_bound.region_square`.
    """
    rows, _ = start(Frequencies(region, frequencies))
    if rows.shape[1] > rows.shape[2]:
        rows = torch.linalg.qr(rows, mode="r").R
    found = search_at(
        region,
        layers,
        frequencies,
        steps=FINE_STEPS,
        tolerance=FINE_TOLERANCE,
        copies=FINE_COPIES,
        root=root,
        rows=rows,
    )
    if not 0 < found.value < math.inf:
        return None
    return replace(point, multipliers={**point.multipliers, **found.multipliers}, sizes={**point.sizes, **found.sizes})


def refinement_cost(region: Region) -> float:
    """Nominal seconds of a refinement for each frequency."""
    each = 3.0 * COMPLEX * FINE_COPIES * entries(region) / NOMINAL
    return FINE_STEPS * (PER_NODE * len(region.order) + each)


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


def _added(parent: Node, shape: Shape) -> Node:
    """A linear node after the parent; its map is given to the search separately."""
    return replace(parent, piece=Linear(Identity(shape)), inputs=(parent,), shape=shape)


def _scaling(root: Tensor, shape: Shape) -> Callable[[Tensor], Tensor]:
    """Multiplication of (r, C, residues, F) by the coordinates' factors (1 or C residues,)."""
    factors = root.to(torch.float32)
    factors = factors.reshape(*shape[:-1], 1) if len(factors) > 1 else factors
    return lambda x: x * factors
