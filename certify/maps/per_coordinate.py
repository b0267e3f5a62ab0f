"""An activation that differs between coordinates, for example with hand-written slopes per channel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.maps.activation import Activation, Parameter
from robustres.certify.proof.rounding import Rounding


@dataclass(frozen=True, eq=False)
class PerCoordinate(Activation):
    """Function number `which` (*shape of the value) of `functions` at every coordinate."""

    functions: tuple[Activation, ...]
    which: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self._chosen([function(x) for function in self.functions])

    @property
    def slopes(self) -> tuple[float, float]:
        low, high = zip(*(function.slopes for function in self.functions), strict=True)
        return min(low), max(high)

    def slopes_on(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        low, high = zip(*(function.slopes_on(lower, upper) for function in self.functions), strict=True)
        return self._chosen(low), self._chosen(high)

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        each = [function.rounding(dtype) for function in self.functions]
        known = [one for one in each if one is not None]
        if len(known) < len(each):
            return None
        relative, lost = max(one.relative for one in known), max(one.lost for one in known)
        return Rounding(relative, lost, min(one.reach for one in known))

    @property
    def jump(self) -> float:
        return max(function.jump for function in self.functions)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The number of the function at every coordinate."""
        return (self.which,)

    def _chosen(self, values: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
        chosen = values[0]
        for number, value in enumerate(values[1:], start=1):
            chosen = torch.where(self.which == number, value, chosen)
        return chosen
