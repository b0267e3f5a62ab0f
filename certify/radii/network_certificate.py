"""The radii of the network itself as a certificate like the others."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustres.certify.bounds.report import LipschitzReport
from robustres.certify.radii.margin_radii import Choice, Norm
from robustres.certify.radii.radius import certify
from robustres.certify.radii.radius_column import NETWORK, RadiusColumn


@dataclass(frozen=True)
class NetworkCertificate:
    """`certify` with its settings, in the form that `certify_best` expects.

    report: of `lipschitz` on the model to be certified; computed in every call if omitted.
    """

    norm: Norm = "l2"
    certificate: Choice = "best"
    report: LipschitzReport | None = None
    dtype: torch.dtype = torch.float64

    @property
    def name(self) -> str:
        """The name in the tables of a run."""
        return self.certificate

    def __call__(self, model: nn.Module, x: Tensor, *, indices: Tensor | None = None) -> RadiusColumn:
        """Radii at images (N, C, H, W), each with the bound that gave it as its source."""
        found = certify(model, x, norm=self.norm, certificate=self.certificate, report=self.report, dtype=self.dtype)
        return RadiusColumn(found.radius, found.prediction, found.source, NETWORK, self.norm, found.guarantee)
