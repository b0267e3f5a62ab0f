"""Radii that may stand in one column: of one function, in one norm, with one kind of guarantee."""

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
    """What two radii must share before one may be compared with, or chosen over, the other."""

    function: str
    norm: Norm
    deterministic: bool


@dataclass(frozen=True, eq=False)
class RadiusColumn:
    """One radius per sample, and what each of them promises.

    radius: (N,) float64, in pixel units and `norm`, rounded down; 0 where nothing is certified.
    prediction: (N,) int64, the class that `function` keeps within the radius; -1 where it abstains.
    source: (N,) names of the certificate that gave each radius.
    function: which function the radii are of: `NETWORK`, or the name of another classifier made from it. Only radii
        of `NETWORK` may be held against attacks on the network.
    guarantee: of each radius on its own. Over N samples the failure probabilities add.
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
        """Columns of the same key may be merged; others never."""
        return ColumnKey(self.function, self.norm, self.guarantee.failure_probability == 0)

    def __len__(self) -> int:
        return len(self.source)
