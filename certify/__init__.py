"""The lower side of the sandwich: sound Lipschitz bounds of networks, and the certified radii that follow from them."""

if __name__ == "certify":
    raise ImportError("import robustres.certify: the bare name `certify` belongs to your own project")

from robustres.certify.audits.audit import AuditReport, AuditRow, audit
from robustres.certify.blocks.joint_bound import joint_bound
from robustres.certify.bounds.block_row import BlockRow
from robustres.certify.bounds.bound_cache import BoundMemory
from robustres.certify.bounds.lipschitz import lipschitz
from robustres.certify.bounds.network_view import NetworkPiece, NetworkView, ResidualView, residual_views
from robustres.certify.bounds.report import LipschitzReport, WhatIf
from robustres.certify.graph.statements import HasLipschitzBound, HasSortedGroups
from robustres.certify.lower.ascent import Search
from robustres.certify.lower.witness import Witness
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.certify.proof.bound import Bound, Estimate, Guarantee, JointBound
from robustres.certify.radii.certificate import Certificate, best_radii, certify_best
from robustres.certify.radii.local_certificate import LocalCertificate
from robustres.certify.radii.network_certificate import NetworkCertificate
from robustres.certify.radii.radius import Certificates, certified_accuracy_curve, certify
from robustres.certify.radii.radius_column import NETWORK, RadiusColumn
from robustres.certify.radii.smoothing import RandomisedSmoothing, SmoothedColumn
from robustres.moved import answer_to_old_names

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
    "LocalCertificate",
    "NetworkCertificate",
    "NetworkPiece",
    "NetworkView",
    "RadiusColumn",
    "RandomisedSmoothing",
    "ResidualView",
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
    "residual_views",
    "spectral_norm",
]

answer_to_old_names(__name__)
