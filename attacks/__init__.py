"""Adversarial examples: the upper side of the true radius."""

if __name__ == "attacks":
    raise ImportError("import robustres.attacks: the bare name `attacks` belongs to your own project")

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.findings import Diagnosis, Finding
from robustres.attacks.base.result import AttackResult
from robustres.attacks.curve import accuracy_curve
from robustres.attacks.diagnosis import diagnose
from robustres.attacks.methods.apgd import APGD
from robustres.attacks.methods.apgd_targeted import APGDTargeted
from robustres.attacks.methods.corruptions import JPEG, GaussianNoise, LowContrast
from robustres.attacks.methods.ddn import DDN
from robustres.attacks.methods.deepfool import DeepFool
from robustres.attacks.methods.ensemble import Ensemble
from robustres.attacks.methods.fab import FAB
from robustres.attacks.methods.fgsm import FGSM
from robustres.attacks.methods.fmn import FMN
from robustres.attacks.methods.hopskipjump import HopSkipJump
from robustres.attacks.methods.ldn import LDN
from robustres.attacks.methods.own import OwnAttack
from robustres.attacks.methods.pgd import PGD
from robustres.attacks.methods.sigma_zero import SigmaZero
from robustres.attacks.methods.square import Square
from robustres.attacks.methods.strong import Strong
from robustres.attacks.methods.superdeepfool import SuperDeepFool
from robustres.attacks.methods.torchattacks_backend import Torchattacks, torchattacks_names
from robustres.attacks.methods.transfer import Transfer
from robustres.attacks.optimality_measure import local_optimality, nearest_within, optimality
from robustres.attacks.registry import attack_names, make_attack
from robustres.moved import answer_to_old_names

__all__ = [
    "APGD",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "JPEG",
    "LDN",
    "PGD",
    "APGDTargeted",
    "Attack",
    "AttackResult",
    "DeepFool",
    "Diagnosis",
    "Ensemble",
    "Finding",
    "GaussianNoise",
    "HopSkipJump",
    "LowContrast",
    "OwnAttack",
    "SigmaZero",
    "Square",
    "Strong",
    "SuperDeepFool",
    "Torchattacks",
    "Transfer",
    "accuracy_curve",
    "attack_names",
    "diagnose",
    "local_optimality",
    "make_attack",
    "nearest_within",
    "optimality",
    "torchattacks_names",
]

answer_to_old_names(__name__)
