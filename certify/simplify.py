"""The network with its linear runs merged: what stays are the activations, the linear maps between, and the merges."""

import math
from collections import Counter

import torch

from robustres.certify.bound import Bound
from robustres.certify.fold import added, composed
from robustres.certify.linear_map import Identity, LinearMap
from robustres.certify.network import Elementwise, Linear, Merge, Node, Opaque, Source
from robustres.certify.selection import Selection


def simplified(output: Node) -> Node:
    """An equivalent network: chains of linear maps composed and folded, sums of linear branches added up."""
    return _Simplifier(output).run()


class _Simplifier:
    """Every old node becomes a new root and a linear map of it that waits to be merged with what follows."""

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
        source = self._materialised(node.inputs[0])
        return node_like(node, piece, source), None

    def _linear(self, node: Node, map_: LinearMap) -> tuple[Node, LinearMap | None]:
        root, waiting = self.images[node.inputs[0]]
        whole = composed([map_] if waiting is None else [waiting, map_])
        if isinstance(whole, Identity) and whole.in_shape == whole.out_shape:
            return root, None
        if self.consumers[node] > 1:
            return node_like(node, Linear(whole), root), None
        return root, whole

    def _merged(self, node: Node, piece: Merge) -> tuple[Node, LinearMap | None]:
        images = [self.images[parent] for parent in node.inputs]
        if piece.kind == "sum" and len({root for root, _ in images}) == 1:
            root = images[0][0]
            terms = tuple(Identity(root.shape) if waiting is None else waiting for _, waiting in images)
            whole = added(terms)
            self.summands[whole] = terms
            if self.consumers[node] > 1:
                return self._linear_node(node, whole, root), None
            return root, whole
        if piece.axis is not None:
            sort_input = self._sort_input(node)
            if sort_input is not None:
                maxmin = Opaque("maxmin", Bound(0.0, 1.0, "closed form"), 1.0)
                return node_like(node, maxmin, sort_input), None
            selected = self._side_by_side(node.inputs, piece.axis)
            if selected is not None:
                return node_like(node, Linear(selected[1]), selected[0]), None
        return node_like(node, piece, *(self._materialised(parent) for parent in node.inputs)), None

    def _materialised(self, old: Node) -> Node:
        root, waiting = self.images[old]
        return root if waiting is None else self._linear_node(old, waiting, root)

    def _linear_node(self, old: Node, map_: LinearMap, root: Node) -> Node:
        return node_like(old, Linear(map_, summands=self.summands.get(map_, ())), root)

    def _sort_input(self, node: Node) -> Node | None:
        """The value whose coordinates max(a, b) beside min(a, b) sorts in pairs: MaxMin, 1-Lipschitz."""
        operands = [_through_reshapes(parent) for parent in node.inputs]
        if sorted(_name(operand) for operand in operands) != ["maximum", "minimum"]:
            return None
        pair = operands[0].inputs
        if len(set(pair)) != 2 or set(pair) != set(operands[1].inputs):
            return None
        selected = self._side_by_side(pair, 0)
        return None if selected is None else node_like(node, Linear(selected[1]), selected[0])

    def _side_by_side(self, nodes: tuple[Node, ...], axis: int) -> tuple[Node, Selection] | None:
        """Selections of one and the same value laid side by side are one selection."""
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
        index = torch.cat(indices, dim=axis)
        root = roots.pop()
        return root, Selection(index.flatten(), root.shape, tuple(index.shape))


def node_like(old: Node, piece: Linear | Elementwise | Opaque | Merge, *inputs: Node) -> Node:
    """A new node that stands where the old one stood."""
    return Node(piece, inputs, old.shape, old.path, old.origin)


def _through_reshapes(node: Node) -> Node:
    while isinstance(node.piece, Linear) and isinstance(node.piece.map, Identity):
        node = node.inputs[0]
    return node


def _name(node: Node) -> str:
    return node.piece.name if isinstance(node.piece, Merge) else ""
