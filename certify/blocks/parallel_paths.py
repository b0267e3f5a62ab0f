"""Regions between a merge and the last node shared by all of its paths: mostly residual blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Opaque, chain
from robustres.certify.maps.folding import added, composed
from robustres.certify.maps.linear_map import Identity, LinearMap, Scaled
from robustres.certify.maps.sector import Slopes

# One input of a merge, as the nodes between the entry of the region and the input that every path passes.
Operand = tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Region:
    """A merge, its entry, and its operands; for a sum, the `shortcut` is the sum of all linear operands."""

    entry: Node
    exit: Node
    operands: tuple[Operand, ...]
    shortcut: LinearMap | None
    branches: tuple[Operand, ...]

    @property
    def is_sum(self) -> bool:
        """Whether the operands are added rather than concatenated."""
        return isinstance(self.exit.piece, Merge) and self.exit.piece.kind == "sum"

    @property
    def kind(self) -> str:
        """Its name in the report."""
        if not self.is_sum:
            return "concatenation"
        if self.shortcut is None or not self.branches:
            return "parallel"
        shortcut = self.shortcut.map if isinstance(self.shortcut, Scaled) else self.shortcut
        return "residual (identity)" if isinstance(shortcut, Identity) else "residual (projection)"

    def alternating(self) -> tuple[LinearMap, list[LinearMap], list[Slopes]] | None:
        """The shortcut, and the branch as linear maps and the activations between them, the form required by the joint
        bound; None if there is no shortcut or the branch contains anything else."""
        if self.shortcut is None or len(self.branches) != 1:
            return None
        layers: list[LinearMap] = []
        slopes: list[Slopes] = []
        shape = self.entry.shape
        for node in self.branches[0]:
            piece = node.piece
            if isinstance(piece, Linear):
                pending = layers.pop() if len(layers) > len(slopes) else Identity(shape)
                layers.append(composed([pending, piece.map]))
            else:
                opaque = piece.sorts if isinstance(piece, Opaque) else None
                activation = piece.slopes if isinstance(piece, Elementwise) else opaque
                if activation is None:
                    return None
                if len(layers) == len(slopes):
                    layers.append(Identity(shape))
                slopes.append(activation)
            shape = node.shape
        if len(layers) == len(slopes):
            layers.append(Identity(shape))
        return self.shortcut, layers, slopes

    def path(self) -> str:
        """Dotted name of the module that contains the region: the common prefix of the paths of its nodes."""
        paths = [self.exit.path, *(node.path for operand in self.operands for node in operand)]
        shared = []
        for names in zip(*(path.split(".") for path in paths), strict=False):
            if len(set(names)) > 1:
                break
            shared.append(names[0])
        return ".".join(shared) or self.exit.path or self.exit.origin.name


def region(dominator: dict[Node, Node], merge: Node) -> Region:
    """The region that ends in `merge`; sums of sums count as one sum."""
    entry = dominator[merge]
    is_sum = isinstance(merge.piece, Merge) and merge.piece.kind == "sum"
    ends = _summands(merge, entry) if is_sum else list(merge.inputs)
    operands = tuple(tuple(chain(dominator, entry, end)) for end in ends)
    if not is_sum:
        return Region(entry, merge, operands, None, operands)
    straight = [operand for operand in operands if is_linear(operand)]
    shortcut = added(_map_of(operand, entry) for operand in straight) if straight else None
    return Region(entry, merge, operands, shortcut, tuple(o for o in operands if not is_linear(o)))


def _summands(merge: Node, entry: Node) -> Sequence[Node]:
    ends: list[Node] = []
    for parent in merge.inputs:
        nested = parent is not entry and isinstance(parent.piece, Merge) and parent.piece.kind == "sum"
        ends.extend(_summands(parent, entry) if nested else [parent])
    return ends


def is_linear(operand: Operand) -> bool:
    """Whether the entry is connected to the merge by a linear map or the identity."""
    return all(isinstance(node.piece, Linear) for node in operand)


def _map_of(operand: Operand, entry: Node) -> LinearMap:
    maps = [node.piece.map for node in operand if isinstance(node.piece, Linear)]
    return composed(maps) if maps else Identity(entry.shape)
