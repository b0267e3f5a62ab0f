"""The left side of the sandwich: sound Lipschitz bounds of networks and the radii that follow from them."""

if __name__ == "certify":
    raise ImportError("import robustres.certify: the bare name `certify` belongs to your own project")

from robustres.certify.block_row import BlockRow
from robustres.certify.bound import Bound, Estimate, Guarantee
from robustres.certify.lipschitz import lipschitz
from robustres.certify.protocol import HasLipschitzBound
from robustres.certify.radius import Certificates, certified_accuracy_curve, certify
from robustres.certify.report import LipschitzReport, WhatIf
from robustres.certify.spectral_norm import spectral_norm

__all__ = [
    "BlockRow",
    "Bound",
    "Certificates",
    "Estimate",
    "Guarantee",
    "HasLipschitzBound",
    "LipschitzReport",
    "WhatIf",
    "certified_accuracy_curve",
    "certify",
    "lipschitz",
    "spectral_norm",
]
