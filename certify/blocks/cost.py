"""The nominal seconds of a search and of an elimination, known before anything is computed.

They count operations, so they do not depend on the machine or its load.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from robustres.certify.blocks.first_layer import first_layer
from robustres.certify.blocks.frequencies import local_layers
from robustres.certify.blocks.increments import Increment, SectorLayer
from robustres.certify.blocks.torus_network import Region, TorusNetwork
from robustres.certify.fourier.torus import coarse_frequencies
from robustres.certify.graph.network import Linear, Node

WIDEST = 6144  # coordinates of a layer eliminated at once: six matrices of that size take 2 GiB
NOMINAL = 2e10  # operations per second of the nominal core
GRAM = 1.25  # operations per entry of rows and column of a Gram matrix, of which one triangle is computed
FACTORISATIONS = 3  # of a first layer that is eliminated with the map before it, and their copies
COMPLEX = 4  # real products per complex product
PER_NODE = 1.5e-4  # nominal seconds of a sweep of the search at each node, regardless of its size


def elimination_cost(order: Sequence[Node], layers: Mapping[Node, Increment]) -> tuple[float, int]:
    """Nominal seconds of one elimination and its proof, and the size of the largest matrix that is factorised."""
    output, first = order[-1], first_layer(order, layers)
    kept = order if first is None else order[order.index(first) - 1 :]
    operations, widest = _followed(
        kept, layers, math.prod(output.shape), lambda node: math.prod(node.shape), ends=first is not None
    )
    if first is not None and isinstance(order[1].piece, Linear):
        map_, free = order[1].piece.map, math.prod(first.shape)
        operations += FACTORISATIONS * free**3 / 3 + 2.0 * free * (map_.out_size + map_.in_size) * map_.roundings
    return operations / NOMINAL + PER_NODE * len(order), widest


def torus_cost(network: TorusNetwork) -> float:
    """Nominal seconds of one elimination of all regions and its proof."""
    seconds, widest = elimination_cost(network.tail, network.layers)
    if widest > WIDEST:
        return math.inf
    rows = math.prod(network.tail[-1].shape)
    for place, region in enumerate(network.regions):
        seconds += region_cost(region, network.layers, rows=0 if place or not network.constant else rows)
    return seconds


def region_cost(region: Region, layers: Mapping[Node, Increment], *, rows: int = 0) -> float:
    """Nominal seconds of one elimination of a region and its proof. rows: as many as its output has where 0."""
    count = len(coarse_frequencies(region.torus))
    size = region.channels
    operations, _ = _followed(
        region.order, local_layers(region, layers), rows or size(region.order[-1]), size, plain=False
    )
    return COMPLEX * count * operations / NOMINAL + PER_NODE * len(region.order) * (1 + count / 64)


def _followed(
    order: Sequence[Node],
    layers: Mapping[Node, Increment],
    rows: int,
    size: Callable[[Node], int],
    *,
    plain: bool = True,
    ends: bool = False,
) -> tuple[float, int]:
    """The cut as in `Front`, with sizes instead of matrices: the number of real or complex operations, and the size of
    the largest matrix that is factorised. ends: with the factorisation of the second node."""
    operations, widest = 0.0, 0
    live = {order[-1]: size(order[-1])}
    for node in reversed(order[1:]):
        if node not in live:
            continue
        own = live.pop(node)
        layer = layers.get(node)
        joined = {parent: size(parent) for parent in node.inputs if parent not in live}
        if isinstance(node.piece, Linear) and layer is None:
            operations += 2.0 * rows * own * (node.piece.map.roundings if plain else size(node.inputs[0]))
        if layer is not None:
            free = int((layer.upper > layer.lower).sum()) if isinstance(layer, SectorLayer) else own
            fresh = not live and isinstance(layer, SectorLayer) and not bool(layer.lower.any())
            live |= joined
            width = sum(live.values())
            products = 0.0 if fresh else 2.0 * free * rows * width
            operations += GRAM * free * free * rows + free**3 / 3
            widest = max(widest, free)
            if ends and node is order[1]:
                return operations, widest
            operations += products + free * free * width
            rows = free if fresh else rows + free
        live |= joined
        width = sum(live.values())
        if rows > width and set(live) != {order[0]}:
            operations += GRAM * rows * width * width + width**3 / 3
            rows, widest = width, max(widest, width)
    width = live.get(order[0], 0)
    side = min(rows, width)
    operations += GRAM * side * side * max(rows, width) + side**3
    widest = max(widest, side)
    return operations, widest


def step_cost(order: Sequence[Node], copies: int) -> float:
    """Nominal seconds of a sweep of the search, forward and backward."""
    maps = [node.piece.map for node in order if isinstance(node.piece, Linear)]
    products = sum(map_.out_size * map_.roundings for map_ in maps)
    return PER_NODE * len(order) + 3.0 * copies * products / NOMINAL
