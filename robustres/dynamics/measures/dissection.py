"""Any network that the certifier supports, cut at the values through which every path passes: its states by depth."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from robustres.certify import LipschitzReport, NetworkView, lipschitz


@dataclass(frozen=True, eq=False)
class Dissection(NetworkView):
    """A network as a sequence of pieces, with the report of their bounds."""

    report: LipschitzReport

    @property
    def residual(self) -> tuple[int, ...]:
        """Positions of the residual blocks in `pieces`."""
        return tuple(position for position, piece in enumerate(self.pieces) if piece.is_residual)

    def piece(self, position: int) -> Callable[[Tensor], Tensor]:
        """The piece at `position` as a function from its input state to its output state."""
        return lambda values: self.run(values, position, position + 1)

    def upper_from(self, position: int) -> float:
        """A bound on the Lipschitz constant from state `position` to the logits."""
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
    """Cut a model into its pieces and bound each; UnsupportedOperationError lists unsupported operations.

    progress: called with the number of pieces bounded so far and the total number.
    """
    report = lipschitz(model, input_shape, joint=joint, progress=progress)
    view = report.view()
    return Dissection(view.pieces, view.captured, report)
