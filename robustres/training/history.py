"""The history of a training run: one row per epoch, and which epoch was kept."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One row of the table "training". clean, certified: shares of the validation samples, NaN if there are none.

    certified counts radii of at least the recipe's eps by the training-time estimate of the norms, NaN for
    unconstrained networks; certified accuracies in reports come from robustres.certify, never from here.
    """

    epoch: int
    loss: float
    clean: float
    certified: float

    @property
    def score(self) -> tuple[float, float]:
        """The criterion by which epochs are compared: certified accuracy if available, then clean accuracy."""
        return (self.clean if self.certified != self.certified else self.certified, self.clean)


@dataclass(frozen=True)
class History:
    """All epochs, the one whose weights were kept (the best on the validation split, or the last), and the seconds."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    seconds: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows for the run's table "training"."""
        return [asdict(epoch) for epoch in self.epochs]
