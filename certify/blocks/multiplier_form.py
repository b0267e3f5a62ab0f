"""What every form of a block answers to the search of its multipliers T and to the proof."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """Multipliers (one per tie), the largest gain lambda seen with them, and a rank of every frequency by its gain."""

    values: Tensor
    value: float
    ranks: Tensor


class FormSource(Protocol):
    """A block's inequality at the frequencies of one torus, or of one dense matrix.

    cost: nominal seconds that the gain of one frequency takes. overhead: of one T, however few the frequencies.
    """

    frequencies: Tensor
    cost: float
    overhead: float

    @property
    def sweep(self) -> float:
        """Nominal seconds of `evaluate`."""
        ...

    def evaluate(self, values: Tensor, near: float) -> Scaling:
        """The gain over all frequencies; `near` is a guess of it. An estimate, as everything but the proof."""
        ...

    def gain_slope(self, values: Tensor, frequencies: Tensor, *, near: float, sharpness: float) -> tuple[float, Tensor]:
        """The largest gain at some frequencies, and the slope of a smooth maximum with respect to log(values)."""
        ...

    def proved_value(self, values: Tensor, value: float, limit: float) -> float:
        """lambda, raised by the smallest margin that is proved at every frequency; infinite where none is found."""
        ...
