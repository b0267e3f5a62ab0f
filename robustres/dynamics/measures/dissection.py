"""Any network that the certifier can read, cut at the values that every path shares: its states through the depth."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from robustres.certify.blocks.parallel_paths import region
from robustres.certify.bounds.block_row import BlockRow
from robustres.certify.bounds.lipschitz import lipschitz
from robustres.certify.bounds.report import LipschitzReport
from robustres.certify.graph.capture import BATCH, Captured, capture
from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, chain, dominators
from robustres.certify.graph.operation_rules import build_network
from robustres.certify.graph.simplify import simplified
from robustres.certify.maps.linear_map import LinearMap
from robustres.errors import InputError, UnsupportedOperationError


@dataclass(frozen=True, eq=False)
class Piece:
    """What stands between two consecutive states.

    kind: "linear", "activation", "residual (identity)", ... as in the block report. exit: where its output is made.
    shortcut: S of a residual block S x + F(x), None elsewhere. row: its bounds, None for a 1-Lipschitz activation.
    """

    name: str
    kind: str
    exit: fx.Node
    shortcut: LinearMap | None
    row: BlockRow | None

    @property
    def is_residual(self) -> bool:
        """Whether this is a residual block."""
        return self.kind.startswith("residual")

    @property
    def upper(self) -> float:
        """A bound of its Lipschitz constant."""
        return 1.0 if self.row is None else self.row.upper


@dataclass(frozen=True, eq=False)
class Dissection:
    """A network as the sequence of its pieces; everything runs in float64 on the certifier's own copy of the model.

    State 0 is the image, state k the output of piece k - 1; the last state is the logits.
    """

    captured: Captured
    pieces: tuple[Piece, ...]
    report: LipschitzReport

    @property
    def residual(self) -> tuple[int, ...]:
        """Positions of the residual blocks in `pieces`."""
        return tuple(position for position, piece in enumerate(self.pieces) if piece.is_residual)

    def run(self, values: Tensor, start: int, stop: int) -> Tensor:
        """State `stop` from state `start` (N, ...); differentiable."""
        if start == stop:
            return values
        first, last = self._node(start), self._node(stop)
        return _in_batches(lambda batch: self.captured.run({first: batch}, last), values)

    def piece(self, position: int) -> Callable[[Tensor], Tensor]:
        """The piece at `position` as a function from its input state to its output state."""
        return lambda values: self.run(values, position, position + 1)

    def states(self, images: Tensor) -> list[Tensor]:
        """All states of images (N, *input shape), detached."""
        found = [images.to(torch.float64)]
        with torch.no_grad():
            for position in range(len(self.pieces)):
                found.append(self.run(found[-1], position, position + 1))
        return found

    def branch(self, position: int, values: Tensor) -> Tensor:
        """F(x) of the residual block at `position`: what it adds to its shortcut."""
        return self.run(values, position, position + 1) - self.skip(position, values)

    def skip(self, position: int, values: Tensor) -> Tensor:
        """S x of the residual block at `position`: its output without the branch."""
        shortcut = self.pieces[position].shortcut
        if shortcut is None:
            raise InputError(f"{self.pieces[position].name} is no residual block, so it has no shortcut to follow")
        return shortcut(values)

    def upper_from(self, position: int) -> float:
        """A bound of the Lipschitz constant from state `position` to the logits."""
        product = 1.0
        for piece in self.pieces[position:]:
            product *= piece.upper
        return product * (1 + 1e-12)

    def _node(self, state: int) -> fx.Node:
        return self.captured.source if state == 0 else self.pieces[state - 1].exit


def dissect(model: nn.Module, input_shape: tuple[int, ...], *, joint: bool = True) -> Dissection:
    """Cut a model into its pieces and bound each; UnsupportedOperationError lists what the certifier cannot read."""
    captured = capture(model, input_shape)
    network, refused = build_network(captured)
    if network is None:
        raise UnsupportedOperationError(refused)
    report = lipschitz(model, input_shape, joint=joint)
    output = simplified(network)
    order = output.ordered()
    dominator = dominators(order)
    rows = iter(report.blocks)
    pieces = []
    for node in chain(dominator, order[0], output):
        silent = isinstance(node.piece, Elementwise) and node.piece.constant == 1
        pieces.append(_piece(node, None if silent else next(rows), dominator))
    return Dissection(captured, tuple(pieces), report)


def _piece(node: Node, row: BlockRow | None, dominator: dict[Node, Node]) -> Piece:
    name = row.name if row is not None else node.path or node.origin.name
    if row is not None and row.is_residual and isinstance(node.piece, Merge):
        return Piece(name, row.kind, node.origin, region(dominator, node).shortcut, row)
    kind = row.kind if row is not None else "activation"
    return Piece(name, "head" if isinstance(node.piece, Linear) and kind == "head" else kind, node.origin, None, row)


def _in_batches(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """The captured graph takes batches of exactly BATCH samples: the last one is filled up and cut again."""
    parts = []
    for batch in torch.split(values, BATCH):
        missing = BATCH - len(batch)
        whole = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch
        parts.append(function(whole)[: len(batch)])
    return torch.cat(parts)
