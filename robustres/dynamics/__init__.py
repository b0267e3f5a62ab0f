"""robustres.dynamics: what residual connections do, claim by claim, on small networks and on a network at hand."""

from robustres.dynamics.claim import Claim, Finding
from robustres.dynamics.dissection import Dissection, dissect
from robustres.dynamics.laboratory import DEMONSTRATIONS, NAMES, demonstrate, inspect_model
from robustres.dynamics.parts import Parts, digits_parts

__all__ = [
    "DEMONSTRATIONS",
    "NAMES",
    "Claim",
    "Dissection",
    "Finding",
    "Parts",
    "demonstrate",
    "digits_parts",
    "dissect",
    "inspect_model",
]
