"""robustres.dynamics: claims about residual connections, tested on small networks and on a given network."""

from robustres.dynamics.laboratory import DEMONSTRATIONS, NAMES, demonstrate, inspect_model
from robustres.dynamics.measures.claim import Claim, Finding
from robustres.dynamics.measures.dissection import Dissection, dissect
from robustres.dynamics.small_networks.parts import Parts, digits_parts
from robustres.moved import answer_to_old_names

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

answer_to_old_names(__name__)
