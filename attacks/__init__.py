"""Adversarial examples: the upper side of the true radius."""

if __name__ == "attacks":
    raise ImportError("import robustres.attacks: the bare name `attacks` belongs to your own project")

from robustres.attacks.attack import Attack
from robustres.attacks.fgsm import FGSM
from robustres.attacks.pgd import PGD
from robustres.attacks.registry import attack_names, make_attack
from robustres.attacks.result import AttackResult

__all__ = ["FGSM", "PGD", "Attack", "AttackResult", "attack_names", "make_attack"]
