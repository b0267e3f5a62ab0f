"""Adversarial examples: the upper side of the true radius."""

if __name__ == "attacks":
    raise ImportError("import robustres.attacks: the bare name `attacks` belongs to your own project")

from robustres.attacks.apgd import APGD
from robustres.attacks.apgd_targeted import APGDTargeted
from robustres.attacks.attack import Attack
from robustres.attacks.curve import accuracy_curve
from robustres.attacks.ddn import DDN
from robustres.attacks.deepfool import DeepFool
from robustres.attacks.diagnosis import diagnose
from robustres.attacks.ensemble import Ensemble
from robustres.attacks.fab import FAB
from robustres.attacks.fgsm import FGSM
from robustres.attacks.findings import Diagnosis, Finding
from robustres.attacks.fmn import FMN
from robustres.attacks.pgd import PGD
from robustres.attacks.registry import attack_names, make_attack
from robustres.attacks.result import AttackResult
from robustres.attacks.square import Square
from robustres.attacks.torchattacks_backend import Torchattacks, torchattacks_names

__all__ = [
    "APGD",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "PGD",
    "APGDTargeted",
    "Attack",
    "AttackResult",
    "DeepFool",
    "Diagnosis",
    "Ensemble",
    "Finding",
    "Square",
    "Torchattacks",
    "accuracy_curve",
    "attack_names",
    "diagnose",
    "make_attack",
    "torchattacks_names",
]
