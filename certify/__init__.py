"""The left side of the sandwich: sound Lipschitz bounds of networks and the radii that follow from them."""

if __name__ == "certify":
    raise ImportError("import robustres.certify: the bare name `certify` belongs to your own project")

from robustres.certify.ascent import Search
from robustres.certify.audit import AuditReport, AuditRow, audit
from robustres.certify.block_row import BlockRow
from robustres.certify.bound import Bound, Estimate, Guarantee, JointBound
from robustres.certify.certificate import Certificate, best_radii, certify_best
from robustres.certify.joint import joint_bound
from robustres.certify.lipschitz import lipschitz
from robustres.certify.network_certificate import NetworkCertificate
from robustres.certify.protocol import HasLipschitzBound, HasSortedGroups
from robustres.certify.radius import Certificates, certified_accuracy_curve, certify
from robustres.certify.radius_column import NETWORK, RadiusColumn
from robustres.certify.remembered import BoundMemory
from robustres.certify.report import LipschitzReport, WhatIf
from robustres.certify.smoothing import RandomisedSmoothing, SmoothedColumn
from robustres.certify.spectral_norm import spectral_norm
from robustres.certify.witness import Witness

__all__ = [
    "NETWORK",
    "AuditReport",
    "AuditRow",
    "BlockRow",
    "Bound",
    "BoundMemory",
    "Certificate",
    "Certificates",
    "Estimate",
    "Guarantee",
    "HasLipschitzBound",
    "HasSortedGroups",
    "JointBound",
    "LipschitzReport",
    "NetworkCertificate",
    "RadiusColumn",
    "RandomisedSmoothing",
    "Search",
    "SmoothedColumn",
    "WhatIf",
    "Witness",
    "audit",
    "best_radii",
    "certified_accuracy_curve",
    "certify",
    "certify_best",
    "joint_bound",
    "lipschitz",
    "spectral_norm",
]
