"""A column of radii: of one function, in one norm, with one kind of guarantee."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustres.certify.proof.bound import Guarantee
from robustres.errors import InputError
from robustres.results import NETWORK
from robustres.threat import Norm

__all__ = ["NETWORK", "ColumnKey", "RadiusColumn"]


class ColumnKey(NamedTuple):
    """What two radii must have in common before they may be compared."""

    function: str
    norm: Norm
    deterministic: bool


@dataclass(frozen=True, eq=False)
class RadiusColumn:
    """One radius per sample, and the guarantee of each.

    radius: (N,) float64, in pixel units and `norm`, rounded down; 0 if nothing is certified.
    prediction: (N,) int64, the class that `function` predicts within the radius; -1 if it abstains.
    source: (N,) the name of the certificate that gave each radius.
    function: the function that the radii concern: `NETWORK`, or the name of another classifier derived from it. Only
        radii of `NETWORK` may be compared with attacks on the network.
    guarantee: of each radius separately. Over N samples the failure probabilities add.
    """

    radius: Tensor
    prediction: Tensor
    source: tuple[str, ...]
    function: str
    norm: Norm
    guarantee: Guarantee

    def __post_init__(self) -> None:
        if not self.radius.shape == self.prediction.shape == (len(self.source),):
            raise InputError(
                f"a column needs a radius, a prediction and a source per sample, got the shapes "
                f"{tuple(self.radius.shape)}, {tuple(self.prediction.shape)} and {len(self.source)} sources"
            )
        if not bool((torch.isfinite(self.radius) & (self.radius >= 0)).all()):
            raise InputError("a certified radius must be finite and at least 0")

    @property
    def key(self) -> ColumnKey:
        """Only columns with the same key may be merged."""
        return ColumnKey(self.function, self.norm, self.guarantee.failure_probability == 0)

    def __len__(self) -> int:
        return len(self.source)
