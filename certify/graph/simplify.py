"""Simplification of a network: runs of linear maps are merged, which leaves activations, linear maps and merges."""

import math
from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Product, Source
from robustres.certify.maps.coordinate_maps import Selection, rearranged
from robustres.certify.maps.folding import added, composed
from robustres.certify.maps.linear_map import Identity, LinearMap
from robustres.certify.maps.nonlinear import Extremum, Opaque, Sort
from robustres.certify.maps.sector import GroupSort
from robustres.certify.maps.sorting import before_reshape, groups_along

# Largest matrix of concatenated linear images that is merged into one map, in entries.
SMALL = 2**22
# The pairs (c, c + C/2) of the first axis, with the larger values in the first half.
MAXMIN = Sort(0, descending=True, sorts=GroupSort(2, "strided"))


def simplified(output: Node) -> Node:
    """An equivalent network: chains of linear maps composed and folded, sums of linear branches added up."""
    return _Simplifier(output).run()


class _Simplifier:
    """Represents every old node as a new root and a pending linear map of it, to be merged with what follows."""

    def __init__(self, output: Node) -> None:
        self.order = output.ordered()
        self.consumers = Counter(parent for node in self.order for parent in node.inputs)
        self.images: dict[Node, tuple[Node, LinearMap | None]] = {}
        self.summands: dict[LinearMap, tuple[LinearMap, ...]] = {}

    def run(self) -> Node:
        for node in self.order:
            self.images[node] = self._image(node)
        return self._materialised(self.order[-1])

    def _image(self, node: Node) -> tuple[Node, LinearMap | None]:
        piece = node.piece
        if isinstance(piece, Source):
            return node, None
        if isinstance(piece, Linear):
            return self._linear(node, piece.map)
        if isinstance(piece, Merge):
            return self._merged(node, piece)
        if isinstance(piece, Sort):
            return self._sorted(node, piece)
        sources = [self._materialised(parent) for parent in node.inputs]
        return node_like(node, piece, *sources), None

    def _sorted(self, node: Node, piece: Sort) -> tuple[Node, LinearMap | None]:
        """A sort along an axis, moved to where this axis is still part of the channels."""
        parent = node.inputs[0]
        root, waiting = self.images[parent]
        rest, shape = before_reshape(waiting, parent.shape)
        sorts = (
            groups_along(piece.along, parent.shape, shape) if node.shape == parent.shape else None
        )  # and not the largest few
        if sorts is None:
            return node_like(node, piece, self._materialised(parent)), None
        entry = root if rest is None else replace(self._linear_node(parent, rest, root), shape=shape)
        place = Node(replace(piece, sorts=sorts), (entry,), shape, node.path, node.origin)
        return self._followed_by(node, place, Identity(shape, node.shape))

    def _followed_by(self, node: Node, root: Node, map_: LinearMap) -> tuple[Node, LinearMap | None]:
        """`node` as a map of `root`, which stays pending if it has one consumer."""
        if isinstance(map_, Identity) and map_.in_shape == map_.out_shape:
            return root, None
        if self.consumers[node] > 1:
            return self._linear_node(node, map_, root), None
        return root, map_

    def _linear(self, node: Node, map_: LinearMap) -> tuple[Node, LinearMap | None]:
        root, waiting = self.images[node.inputs[0]]
        return self._followed_by(node, root, composed([map_] if waiting is None else [waiting, map_]))

    def _merged(self, node: Node, piece: Merge) -> tuple[Node, LinearMap | None]:
        images = [self.images[parent] for parent in node.inputs]
        if piece.kind == "sum" and len({root for root, _ in images}) == 1:
            root = images[0][0]
            terms = tuple(Identity(root.shape) if waiting is None else waiting for _, waiting in images)
            whole = added(terms)
            self.summands[whole] = terms
            return self._followed_by(node, root, whole)
        if piece.axis is not None and piece.kind == "concatenation":
            maxmin = self._maxmin(node, piece.axis)
            if maxmin is not None:
                return maxmin
            selected = self._side_by_side(node.inputs, piece.axis)
            if selected is not None:
                return node_like(node, Linear(rearranged(selected[1], selected[0].shape)), selected[0]), None
            joined = self._linear_side_by_side(node, piece.axis)
            if joined is not None:
                return joined
        return node_like(node, piece, *(self._materialised(parent) for parent in node.inputs)), None

    def _linear_side_by_side(self, node: Node, axis: int) -> tuple[Node, LinearMap | None] | None:
        """A concatenation of small linear images of the same value, as a sum of maps with padded outputs."""
        images = [self.images[parent] for parent in node.inputs]
        root, size = images[0][0], math.prod(node.shape)
        if any(other is not root for other, _ in images) or size * math.prod(root.shape) > SMALL:
            return None
        terms, start = [], 0
        for parent, (_, waiting) in zip(node.inputs, images, strict=True):
            place = torch.full(node.shape, -1)
            numbers = torch.arange(math.prod(parent.shape)).reshape(parent.shape)
            place.narrow(axis, start, parent.shape[axis]).copy_(numbers)
            start += parent.shape[axis]
            device = (waiting or Identity(root.shape)).device
            put = Selection(place.flatten().to(device), parent.shape, node.shape)
            terms.append(composed([put] if waiting is None else [waiting, put]))
        return self._followed_by(node, root, added(terms))

    def _materialised(self, old: Node) -> Node:
        root, waiting = self.images[old]
        return root if waiting is None else self._linear_node(old, waiting, root)

    def _linear_node(self, old: Node, map_: LinearMap, root: Node) -> Node:
        return node_like(old, Linear(map_, summands=self.summands.get(map_, ())), root)

    def _maxmin(self, node: Node, axis: int) -> tuple[Node, LinearMap | None] | None:
        """max(a, b) concatenated with min(a, b): a and b concatenated, sorted in pairs, and rearranged."""
        operands = [_through_reshapes(parent) for parent in node.inputs]
        pairs = self._pairs(operands)
        if pairs is None:
            return None
        root, side_by_side = pairs
        shape = side_by_side.out_shape
        plain = isinstance(side_by_side, Identity) and side_by_side.in_shape == shape
        entry = root if plain else Node(Linear(side_by_side), (root,), shape, node.path, node.origin)
        place = Node(MAXMIN, (entry,), shape, node.path, node.origin)
        half = math.prod(shape) // 2
        numbers = [half * k + torch.arange(half).reshape(parent.shape) for k, parent in enumerate(node.inputs)]
        return self._followed_by(node, place, rearranged(torch.cat(numbers, dim=axis), shape))

    def _pairs(self, operands: list[Node]) -> tuple[Node, LinearMap] | None:
        """If the operands are the maxima and minima of pairs: a value, and the map that arranges the first elements of
        all pairs, then the second ones, along its first axis."""
        pieces, inputs = [operand.piece for operand in operands], operands[0].inputs
        if {piece.kind for piece in pieces if isinstance(piece, Merge)} == {"maximum", "minimum"}:
            if len(operands) != 2:
                return None
            if len(set(inputs)) != 2 or set(inputs) != set(operands[1].inputs) or not inputs[0].shape:
                return None
            selected = self._side_by_side(inputs, 0)
            return None if selected is None else (selected[0], rearranged(selected[1], selected[0].shape))
        first, second = pieces if len(pieces) == 2 else (None, None)
        if not (isinstance(first, Extremum) and isinstance(second, Extremum)) or len(first.axes) != 1:
            return None
        along = first.axes[0]
        opposite = first.axes == second.axes and first.largest != second.largest
        if not opposite or inputs != operands[1].inputs or inputs[0].shape[along] != 2:
            return None
        numbers = torch.arange(math.prod(inputs[0].shape)).reshape(inputs[0].shape)
        halves = torch.cat([numbers.select(along, 0), numbers.select(along, 1)])
        return self._materialised(inputs[0]), rearranged(halves, inputs[0].shape)

    def _side_by_side(self, nodes: tuple[Node, ...], axis: int) -> tuple[Node, Tensor] | None:
        """A concatenation of selections of the same value: the value, and the indices of its coordinates."""
        roots, indices = set(), []
        for node in nodes:
            root, waiting = self.images[node]
            piece = root.piece
            if waiting is None and isinstance(piece, Linear):
                root, waiting = root.inputs[0], piece.map
            roots.add(root)
            if isinstance(waiting, Selection):
                indices.append(waiting.index.reshape(node.shape))
            elif waiting is None or isinstance(waiting, Identity):
                indices.append(torch.arange(math.prod(node.shape)).reshape(node.shape))
            else:
                return None
        if len(roots) != 1:
            return None
        return roots.pop(), torch.cat(indices, dim=axis)


def node_like(old: Node, piece: Linear | Elementwise | Opaque | Merge | Product, *inputs: Node) -> Node:
    """A new node in place of the old one."""
    return Node(piece, inputs, old.shape, old.path, old.origin)


def _through_reshapes(node: Node) -> Node:
    while isinstance(node.piece, Linear) and isinstance(node.piece.map, Identity):
        node = node.inputs[0]
    return node
