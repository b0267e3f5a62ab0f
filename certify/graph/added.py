"""What affine operations add: the answer of each where everything that depends on the image is 0.

The network of pieces knows only the sizes of constants, since a Lipschitz constant needs no more; intervals of values
need the constants themselves.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx

from robustres.certify.graph.capture import BATCH, Captured, device_of
from robustres.certify.graph.network import Elementwise, Linear, Node, Opaque
from robustres.certify.maps.lengths import Length, Normalisation, Radial
from robustres.certify.maps.nonlinear import Extremum, MaxPool, Running, Sort

ROUNDINGS = 8  # that an added constant may have seen; batch normalisation has six


@dataclass(frozen=True, eq=False)
class Added:
    """The constants of the `Linear` nodes in `order`; of an operation of several nodes, the last one adds all."""

    captured: Captured
    order: list[Node]

    @cached_property
    def _last(self) -> dict[fx.Node, Node]:
        return {node.origin: node for node in self.order}

    @cached_property
    def _shifted(self) -> set[fx.Node]:
        return {node.origin for node in self.order if isinstance(node.piece, Linear) and node.piece.shift}

    def by(self, node: Node) -> tuple[Tensor, Tensor] | None:
        """The constant (*shape), and at or above the size of what it was computed from, in float64.

        None if nodes between the operation's inputs and this one do not map 0 to 0.
        """
        device = device_of(self.captured.module)
        zero = torch.zeros(node.shape, dtype=torch.float64, device=device)
        if node.origin not in self._shifted:
            return zero, zero
        if self._last[node.origin] is not node:
            return None if _shift(node) else (zero, zero)
        inputs: dict[fx.Node, Tensor] = {}
        waiting = list(node.inputs)
        while waiting:
            inner = waiting.pop()
            if inner.origin is not node.origin:
                inputs[inner.origin] = torch.zeros(BATCH, *inner.shape, dtype=torch.float64, device=device)
            elif not _keeps_zero(inner):
                return None
            else:
                waiting += inner.inputs
        answer = self.captured.run(inputs, node.origin)[0].reshape(node.shape)
        return answer.clone(), answer.abs() + _shift(node)


def _shift(node: Node) -> float:
    """At or above the absolute values of what the node adds to a coordinate."""
    return node.piece.largest if isinstance(node.piece, Linear) else 0.0


def _keeps_zero(node: Node) -> bool:
    """Whether the node's value is 0 where its inputs are."""
    if isinstance(node.piece, Elementwise):
        return not bool(node.piece.function(torch.zeros(node.shape, dtype=torch.float64)).any())
    if isinstance(node.piece, Opaque):
        return isinstance(node.piece, Sort | Extremum | Running | MaxPool | Length | Normalisation | Radial)
    return not _shift(node)
