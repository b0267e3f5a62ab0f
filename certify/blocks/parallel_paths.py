"""Regions of the network between a node and the last node that all of its paths share: residual blocks, mostly."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustres.certify.graph.network import Linear, Merge, Node, chain
from robustres.certify.maps.folding import added, composed
from robustres.certify.maps.linear_map import Identity, LinearMap, Scaled


@dataclass(frozen=True, eq=False)
class Operand:
    """One input of a merge: the nodes between the region's entry and it that every path passes."""

    nodes: tuple[Node, ...]

    @property
    def linear(self) -> bool:
        """Whether the entry reaches the merge by a linear map, or unchanged."""
        return all(isinstance(node.piece, Linear) for node in self.nodes)


@dataclass(frozen=True, eq=False)
class Region:
    """A merge, its entry, and its operands; for a sum, all linear operands added up to the `shortcut`."""

    entry: Node
    exit: Node
    operands: tuple[Operand, ...]
    shortcut: LinearMap | None
    branches: tuple[Operand, ...]

    @property
    def is_sum(self) -> bool:
        """Whether the operands are added, and not laid side by side."""
        return isinstance(self.exit.piece, Merge) and self.exit.piece.kind == "sum"

    @property
    def kind(self) -> str:
        """What the report calls it."""
        if not self.is_sum:
            return "concatenation"
        if self.shortcut is None or not self.branches:
            return "parallel"
        shortcut = self.shortcut.map if isinstance(self.shortcut, Scaled) else self.shortcut
        return "residual (identity)" if isinstance(shortcut, Identity) else "residual (projection)"

    def path(self) -> str:
        """Dotted name of the module that holds the region: what the paths of all its nodes share."""
        paths = [self.exit.path, *(node.path for operand in self.operands for node in operand.nodes)]
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
    operands = tuple(Operand(tuple(chain(dominator, entry, end))) for end in ends)
    if not is_sum:
        return Region(entry, merge, operands, None, operands)
    straight = [operand for operand in operands if operand.linear]
    shortcut = added(_map_of(operand, entry) for operand in straight) if straight else None
    return Region(entry, merge, operands, shortcut, tuple(o for o in operands if not o.linear))


def _summands(merge: Node, entry: Node) -> Sequence[Node]:
    ends: list[Node] = []
    for parent in merge.inputs:
        nested = parent is not entry and isinstance(parent.piece, Merge) and parent.piece.kind == "sum"
        ends.extend(_summands(parent, entry) if nested else [parent])
    return ends


def _map_of(operand: Operand, entry: Node) -> LinearMap:
    maps = [node.piece.map for node in operand.nodes if isinstance(node.piece, Linear)]
    return composed(maps) if maps else Identity(entry.shape)
