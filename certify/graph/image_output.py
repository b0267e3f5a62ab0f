"""Outputs that are images in another arrangement: flattened, permuted, shuffled into a finer image.

Such a rearrangement keeps every norm, so the Lipschitz constant in l2 is that of the image.
"""

from dataclasses import replace

import torch

from robustres.certify.graph.network import Elementwise, Linear, Node
from robustres.certify.maps.coordinate_maps import Selection
from robustres.certify.maps.folding import composed
from robustres.certify.maps.linear_map import Composition, Identity, LinearMap


def image_behind(output: Node) -> Node | None:
    """A network with the same coordinates as output in another order, which is an image (C, H, W); None if there is
    none. The output of a simplified network is not changed if it is an image already."""
    image = output if _is_image(output) else _before_rearrangement(output)
    return image if _is_image(image) else None


def _is_image(node: Node) -> bool:
    permuted = isinstance(node.piece, Linear) and _rearranges(_parts(node.piece.map)[-1])
    return len(node.shape) == 3 and node.shape[1] * node.shape[2] > 1 and not permuted


def _before_rearrangement(node: Node) -> Node:
    """The node without the rearrangements at its end, also those before a function of each coordinate."""
    piece = node.piece
    if isinstance(piece, Elementwise) and piece.each is None:
        before = _before_rearrangement(node.inputs[0])
        return node if before is node.inputs[0] else replace(node, inputs=(before,), shape=before.shape)
    if not isinstance(piece, Linear):
        return node
    kept = _parts(piece.map)
    while kept and _rearranges(kept[-1]):
        kept = kept[:-1]
    if not kept:
        return _before_rearrangement(node.inputs[0])
    if len(kept) == len(_parts(piece.map)):
        return node
    map_ = composed(kept)
    return replace(node, piece=Linear(map_), shape=map_.out_shape)


def _parts(map_: LinearMap) -> tuple[LinearMap, ...]:
    return tuple(map_.parts) if isinstance(map_, Composition) else (map_,)


def _rearranges(map_: LinearMap) -> bool:
    """Whether the map moves every coordinate to exactly one place."""
    if isinstance(map_, Selection):
        everywhere = torch.arange(map_.in_size, device=map_.device)
        return map_.in_size == map_.out_size and torch.equal(map_.index.sort().values, everywhere)
    return isinstance(map_, Identity)
