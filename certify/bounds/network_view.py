"""A view of a network as the certifier represents it: its pieces, its residual blocks, its states."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor, fx, nn

from robustres.certify.blocks.joint_bound import branch_bound
from robustres.certify.blocks.parallel_paths import Operand, Region, is_linear, region
from robustres.certify.bounds.block_row import BlockRow
from robustres.certify.graph.capture import Captured
from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, chain, dominators
from robustres.certify.graph.reading import read_network
from robustres.certify.maps.linear_map import LinearMap, Shape
from robustres.certify.maps.sector import Slopes, largest_slope
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.errors import InputError


@dataclass(frozen=True, eq=False)
class NetworkPiece:
    """The part of a network between two consecutive values through which every path passes.

    name, kind: as in the block report; "activation" for a 1-Lipschitz activation, which has no row there.
    row: its bounds, None for such an activation. shortcut: S of a residual block S x + F(x), otherwise None.
    """

    name: str
    kind: str
    row: BlockRow | None
    shortcut: LinearMap | None = field(repr=False)
    exit: fx.Node = field(repr=False)

    @property
    def is_residual(self) -> bool:
        """Whether this is a residual block."""
        return self.row is not None and self.row.is_residual

    @property
    def upper(self) -> float:
        """A bound on its Lipschitz constant in the norm of the report."""
        return 1.0 if self.row is None else self.row.upper


@dataclass(frozen=True, eq=False)
class NetworkView:
    """A network as a sequence of pieces; everything runs in float64 on the certifier's own copy of the model.

    State 0 is the image, state k the output of piece k - 1; the last state is the logits.
    """

    pieces: tuple[NetworkPiece, ...]
    captured: Captured = field(repr=False)

    @property
    def module(self) -> nn.Module:
        """The certifier's own copy of the model."""
        return self.captured.module

    def run(self, values: Tensor, start: int, stop: int) -> Tensor:
        """State `stop` from state `start` (N, ...); differentiable."""
        return values if start == stop else self.captured.run_all(values, self._node(start), self._node(stop))

    def states(self, images: Tensor) -> list[Tensor]:
        """All states of images (N, *input shape), detached."""
        found = [images.to(torch.float64)]
        with torch.no_grad():
            for position in range(len(self.pieces)):
                found.append(self.run(found[-1], position, position + 1))
        return found

    def skip(self, position: int, values: Tensor) -> Tensor:
        """S x of the residual block at `position`: its output without the branch."""
        shortcut = self.pieces[position].shortcut
        if shortcut is None:
            raise InputError(f"{self.pieces[position].name} is not a residual block, so it has no shortcut to follow")
        return shortcut(values)

    def branch(self, position: int, values: Tensor) -> Tensor:
        """F(x) of the residual block at `position`: its output minus the shortcut."""
        return self.run(values, position, position + 1) - self.skip(position, values)

    def _node(self, state: int) -> fx.Node:
        return self.captured.source if state == 0 else self.pieces[state - 1].exit


def network_view(captured: Captured, output: Node, rows: Sequence[BlockRow]) -> NetworkView:
    """The view of a simplified network whose pieces have these rows."""
    order = output.ordered()
    dominator = dominators(order)
    remaining = iter(rows)
    pieces = []
    for node in chain(dominator, order[0], output):
        if isinstance(node.piece, Elementwise) and node.piece.constant == 1:
            pieces.append(NetworkPiece(node.path or node.origin.name, "activation", None, None, node.origin))
            continue
        row = next(remaining)
        merges = row.is_residual and isinstance(node.piece, Merge)
        shortcut = region(dominator, node).shortcut if merges else None
        pieces.append(NetworkPiece(row.name, row.kind, row, shortcut, node.origin))
    return NetworkView(tuple(pieces), captured)


@dataclass(frozen=True, eq=False)
class ResidualView:
    """A residual block S x + F(x) of a network as it is written, with its maps in float64.

    shortcut: S. layers, slopes: F as linear maps and the activations between them. branch_end, shortcut_end: dotted
    paths of the modules of the final run of linear maps of F, and of S, last one first; empty for S = identity and for
    a sum of several maps.
    """

    path: str
    shortcut: LinearMap
    layers: tuple[LinearMap, ...]
    slopes: tuple[Slopes, ...]
    branch_end: tuple[str, ...]
    shortcut_end: tuple[str, ...]

    def bound(self, share: float = 1.0, *, joint: bool, effort: float) -> float:
        """Upper bound on the Lipschitz constant of S x + share F(x); effort: seconds of a nominal core (joint only)."""
        layers = (*self.layers[:-1], share * self.layers[-1])
        if joint:
            return branch_bound(self.shortcut, layers, slopes=self.slopes, effort=effort).upper
        total = spectral_norm(self.shortcut).upper
        branch = share
        for layer in self.layers:
            branch *= spectral_norm(layer).upper
        for slopes in self.slopes:
            branch *= largest_slope(slopes)
        return (total + branch) * (1 + 1e-12)


def residual_views(model: nn.Module, input_shape: Shape) -> list[ResidualView | str]:
    """The residual blocks of a model, without bounding anything.

    A block whose branch is not a sequence of linear maps and activations is represented by its dotted path only. Raises
    UnsupportedOperationError for operations without a rule.
    """
    _, output = read_network(model, input_shape)
    order = output.ordered()
    dominator = dominators(order)
    found = [region(dominator, node) for node in order if isinstance(node.piece, Merge)]
    return [_residual(place) for place in found if place.kind.startswith("residual")]


def _residual(found: Region) -> ResidualView | str:
    turns = found.alternating()
    if turns is None:
        return found.path()
    shortcut, layers, slopes = turns
    straight = [_ends(operand) for operand in found.operands if is_linear(operand)]
    projection = straight[0] if len(straight) == 1 else ()
    return ResidualView(found.path(), shortcut, tuple(layers), tuple(slopes), _ends(found.branches[0]), projection)


def _ends(operand: Operand) -> tuple[str, ...]:
    last = takewhile(lambda node: isinstance(node.piece, Linear), reversed(operand))
    return tuple(dict.fromkeys(node.path for node in last))
