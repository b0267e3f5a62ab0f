"""The search of T and the proof on the whole incremental form, inputs and all hidden layers included."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from robustres.certify.blocks.incremental_form import EXACT_SIDE, IncrementalForm, gain, gain_slope, proved
from robustres.certify.blocks.multiplier_form import Scaling

MARGINS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
COARSE_MARGINS = (1e-5, 1e-4, 1e-3)  # a large matrix's lambda is only known to a few digits


class DirectSearch(ABC):
    """A block's incremental form at every frequency, in pieces of bounded memory."""

    frequencies: Tensor
    cost: float
    overhead = 0.0
    _active: tuple[Tensor, IncrementalForm] | None = None

    @abstractmethod
    def form(self, frequencies: Tensor) -> IncrementalForm:
        """The form at some of the frequencies (F, 2)."""

    @abstractmethod
    def chunks(self) -> Iterator[IncrementalForm]:
        """The form at all frequencies, piece by piece."""

    @property
    def sweep(self) -> float:
        """Nominal seconds of the gain at every frequency."""
        return self.cost * len(self.frequencies)

    def evaluate(self, values: Tensor, near: float = math.inf) -> Scaling:
        """The gain at every frequency."""
        with torch.no_grad():
            gains = torch.cat([gain(form, values) for form in self.chunks()])
        value = float(gains.max())
        return Scaling(values, math.inf if math.isnan(value) else value, gains)

    def gain_slope(self, values: Tensor, frequencies: Tensor, *, near: float, sharpness: float) -> tuple[float, Tensor]:
        """As `incremental_form.gain_slope`; the form of the last frequencies is kept."""
        if self._active is None or self._active[0] is not frequencies:
            self._active = frequencies, self.form(frequencies)
        return gain_slope(self._active[1], values, sharpness=sharpness)

    def proved_value(self, values: Tensor, value: float, limit: float) -> float:
        """lambda, raised by the smallest margins that hold at every frequency; infinite where the margins are used up.

        What holds at one frequency with a smaller value holds with a larger one, so no frequency is looked at again.
        """
        exact = self.form(self.frequencies[:1]).c_input.shape[-1] <= EXACT_SIDE
        tried = MARGINS if exact else COARSE_MARGINS
        margins = iter(tried)
        held = value * (1 + next(margins))
        with torch.no_grad():
            for form in self.chunks():
                while not proved(form, values, held):
                    here = float(gain(form, values).max())
                    if here > value:
                        value, margins = here, iter(tried)
                    margin = next(margins, None)
                    if margin is None or not value < limit:
                        return math.inf
                    held = max(held, value * (1 + margin))
        return held
