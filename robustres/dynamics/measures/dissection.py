"""Any network that the certifier can read, cut at the values that every path shares: its states through the depth."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from robustres.certify import LipschitzReport, NetworkPiece, NetworkView, lipschitz


@dataclass(frozen=True, eq=False)
class Dissection:
    """A network as the sequence of its pieces, and their bounds.

    State 0 is the image, state k the output of piece k - 1; the last state is the logits. Everything runs in float64.
    """

    view: NetworkView
    report: LipschitzReport

    @property
    def pieces(self) -> tuple[NetworkPiece, ...]:
        """What stands between two consecutive states."""
        return self.view.pieces

    @property
    def residual(self) -> tuple[int, ...]:
        """Positions of the residual blocks in `pieces`."""
        return tuple(position for position, piece in enumerate(self.pieces) if piece.is_residual)

    def run(self, values: Tensor, start: int, stop: int) -> Tensor:
        """State `stop` from state `start` (N, ...); differentiable."""
        return self.view.run(values, start, stop)

    def piece(self, position: int) -> Callable[[Tensor], Tensor]:
        """The piece at `position` as a function from its input state to its output state."""
        return lambda values: self.run(values, position, position + 1)

    def states(self, images: Tensor) -> list[Tensor]:
        """All states of images (N, *input shape), detached."""
        return self.view.states(images)

    def branch(self, position: int, values: Tensor) -> Tensor:
        """F(x) of the residual block at `position`: what it adds to its shortcut."""
        return self.view.branch(position, values)

    def skip(self, position: int, values: Tensor) -> Tensor:
        """S x of the residual block at `position`: its output without the branch."""
        return self.view.skip(position, values)

    def upper_from(self, position: int) -> float:
        """A bound of the Lipschitz constant from state `position` to the logits."""
        product = 1.0
        for piece in self.pieces[position:]:
            product *= piece.upper
        return product * (1 + 1e-12)


def dissect(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    joint: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Dissection:
    """Cut a model into its pieces and bound each; UnsupportedOperationError lists what the certifier cannot read.

    progress: told how many pieces are bounded, and how many there are.
    """
    report = lipschitz(model, input_shape, joint=joint, progress=progress)
    return Dissection(report.view(), report)
