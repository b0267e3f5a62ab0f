"""Adversarial examples: the upper side of the true radius."""

if __name__ == "attacks":
    raise ImportError("import robustres.attacks: the bare name `attacks` belongs to your own project")

from robustres.attacks.apgd import APGD
from robustres.attacks.apgd_targeted import APGDTargeted
from robustres.attacks.attack import Attack
from robustres.attacks.ensemble import Ensemble
from robustres.attacks.fab import FAB
from robustres.attacks.fgsm import FGSM
from robustres.attacks.pgd import PGD
from robustres.attacks.registry import attack_names, make_attack
from robustres.attacks.result import AttackResult
from robustres.attacks.square import Square

__all__ = [
    "APGD",
    "FAB",
    "FGSM",
    "PGD",
    "APGDTargeted",
    "Attack",
    "AttackResult",
    "Ensemble",
    "Square",
    "attack_names",
    "make_attack",
]
