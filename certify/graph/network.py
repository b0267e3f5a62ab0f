"""The network as the certifier sees it: a directed acyclic graph of linear maps, activations and merges."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, fx

from robustres.certify.maps.activation import Activation
from robustres.certify.maps.linear_map import LinearMap, Shape
from robustres.certify.maps.nonlinear import Opaque as Opaque  # re-exported: one of the pieces below


@dataclass(frozen=True, eq=False)
class Source:
    """The input of the network."""


@dataclass(frozen=True, eq=False)
class Linear:
    """An affine map; its constant part plays no role for a Lipschitz constant.

    shift: at or above the l2 norm of all constants added to a sample; needed for rounding errors. peak: at or above the
    absolute values of all constants added to one coordinate together; None where only the shift is known.
    summands: the maps of which it is the sum, if it was written as a sum such as x + W x; otherwise empty.
    """

    map: LinearMap
    shift: float = 0.0
    summands: tuple[LinearMap, ...] = ()
    peak: float | None = None

    @property
    def largest(self) -> float:
        """At or above the absolute values of all constants added to one coordinate together."""
        return self.shift if self.peak is None else min(self.peak, self.shift)


@dataclass(frozen=True, eq=False)
class Elementwise:
    """A scalar function applied to every coordinate.

    within: its slopes on a restricted set of inputs, None for all inputs. each: the slopes of every coordinate, in the
    node's shape.
    """

    function: Activation
    within: tuple[float, float] | None = None
    each: tuple[Tensor, Tensor] | None = None

    @property
    def slopes(self) -> tuple[float, float]:
        """An interval that contains all difference quotients of the function on the admissible inputs."""
        return self.function.slopes if self.within is None else self.within

    @property
    def constant(self) -> float:
        """The Lipschitz constant, the same in l2 and linf."""
        return max(abs(self.slopes[0]), abs(self.slopes[1]))


@dataclass(frozen=True, eq=False)
class Merge:
    """A combination of several inputs.

    "sum" adds them. "concatenation" is an isometry; "maximum" and "minimum" (elementwise, of two inputs) are
    nonexpansive on the concatenated inputs, in l2 and in linf.
    axis: the unbatched axis of a concatenation without constants.
    """

    kind: Literal["sum", "concatenation", "maximum", "minimum"]
    axis: int | None = None


@dataclass(frozen=True, eq=False)
class Product:
    """The elementwise product of two values, which has no global bound.

    largest: at or above the absolute values of both factors on the admissible inputs; infinite for all inputs.
    """

    largest: tuple[float, float] = (math.inf, math.inf)


Piece = Source | Linear | Elementwise | Opaque | Merge | Product


@dataclass(frozen=True, eq=False)
class Node:
    """One value in the network, and the piece that computes it from its inputs.

    path: dotted name of the module that contains the operation. origin: its node in the captured graph.
    """

    piece: Piece
    inputs: tuple["Node", ...]
    shape: Shape
    path: str
    origin: fx.Node

    def ordered(self) -> list["Node"]:
        """This node and all its ancestors, each after its inputs."""
        order: dict[Node, None] = {}
        stack: list[tuple[Node, bool]] = [(self, False)]
        while stack:
            node, expanded = stack.pop()
            if node in order:
                continue
            if expanded:
                order[node] = None
            else:
                stack.append((node, True))
                stack.extend((parent, False) for parent in reversed(node.inputs))
        return list(order)


def forward_roundings(node: Node) -> int:
    """Roundings of a coordinate where the operation of a `Linear` node runs; 0 if it computes nothing.

    A sum of products may begin with the constant, which then sees all of its additions, so those of the operation's
    other nodes count as well.
    """
    assert isinstance(node.piece, Linear)
    if node.piece.map.forward_roundings == 0 and node.piece.shift == 0:
        return 0
    count, waiting = 8, [node]
    while waiting:
        one = waiting.pop()
        count += one.piece.map.forward_roundings if isinstance(one.piece, Linear) else len(one.inputs)
        waiting += [parent for parent in one.inputs if parent.origin is node.origin]
    return count


def dominators(order: Sequence[Node]) -> dict[Node, Node]:
    """The immediate dominator of every node except the first: the last node shared by all of its paths from the source.

    `order` is topological and starts with the source (Cooper, Harvey and Kennedy 2001; one pass suffices without
    cycles).
    """
    position = {node: place for place, node in enumerate(order)}
    dominator: dict[Node, Node] = {order[0]: order[0]}
    for node in order[1:]:
        meet = node.inputs[0]
        for other in node.inputs[1:]:
            while meet is not other:
                if position[meet] > position[other]:
                    meet = dominator[meet]
                else:
                    other = dominator[other]
        dominator[node] = meet
    del dominator[order[0]]
    return dominator


def chain(dominator: dict[Node, Node], start: Node, end: Node) -> list[Node]:
    """The nodes after `start`, up to and including `end`, through which every path from `start` to `end` passes."""
    nodes = []
    while end is not start:
        nodes.append(end)
        end = dominator[end]
    return nodes[::-1]
