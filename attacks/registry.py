"""Attacks by name."""

from typing import Any

from robustres.attacks.apgd import APGD
from robustres.attacks.apgd_targeted import APGDTargeted
from robustres.attacks.attack import Attack
from robustres.attacks.ensemble import Ensemble
from robustres.attacks.fab import FAB
from robustres.attacks.fgsm import FGSM
from robustres.attacks.pgd import PGD
from robustres.attacks.square import Square
from robustres.errors import InputError
from robustres.threat import ThreatModel

_ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack for attack in (FGSM, PGD, APGD, APGDTargeted, FAB, Square, Ensemble)
}


def attack_names() -> tuple[str, ...]:
    """The names that `make_attack` knows."""
    return tuple(_ATTACKS)


def make_attack(name: str, threat: ThreatModel, **settings: Any) -> Attack:
    """The attack of that name with its settings; InputError names what is unknown.

    >>> make_attack("pgd", ThreatModel("linf", 8 / 255), steps=50).steps
    50
    """
    if name not in _ATTACKS:
        raise InputError(f"unknown attack {name!r}; known are {', '.join(attack_names())}")
    try:
        return _ATTACKS[name](threat, **settings)
    except TypeError as error:
        raise InputError(f"{name} does not have these settings: {error}") from error
