"""Attacks by name."""

from dataclasses import fields
from typing import Any

from robustres.attacks.base.attack import Attack
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
from robustres.attacks.methods.pgd import PGD
from robustres.attacks.methods.sigma_zero import SigmaZero
from robustres.attacks.methods.square import Square
from robustres.attacks.methods.strong import Strong
from robustres.attacks.methods.superdeepfool import SuperDeepFool
from robustres.attacks.methods.torchattacks_backend import PREFIX, Torchattacks
from robustres.errors import InputError
from robustres.threat import ThreatModel

_CLASSES: tuple[type[Attack], ...] = (
    *(FGSM, PGD, APGD, APGDTargeted, FAB, Square, Ensemble, Strong),
    *(LDN, DDN, FMN, DeepFool, SuperDeepFool, SigmaZero, HopSkipJump),
    *(GaussianNoise, LowContrast, JPEG),
)
_ATTACKS = {attack.kind: attack for attack in _CLASSES}
_SHARED = {field.name for field in fields(Attack)}


def attack_names() -> tuple[str, ...]:
    """The names of the built-in attacks; `make_attack` also accepts torchattacks:NAME."""
    return tuple(_ATTACKS)


def attack_class(name: str) -> type[Attack]:
    """The class of the attack with this name; raises InputError for an unknown name."""
    if name.startswith(PREFIX):
        return Torchattacks
    if name not in _ATTACKS:
        raise InputError(f"unknown attack {name!r}; known are {', '.join(attack_names())} and torchattacks:NAME")
    return _ATTACKS[name]


def make_attack(name: str, threat: ThreatModel, **settings: Any) -> Attack:
    """The attack with this name and these settings; raises InputError for an unknown name or setting.

    >>> make_attack("pgd", ThreatModel("linf", 8 / 255), steps=50).name
    'pgd'
    """
    attack = attack_class(name)
    if attack is Torchattacks:
        own = {key: settings[key] for key in settings.keys() & _SHARED}
        arguments = {key: value for key, value in settings.items() if key not in own}
        return Torchattacks(threat, method=name.removeprefix(PREFIX), arguments=arguments, **own)
    known = [field.name for field in fields(attack) if field.init and field.name not in ("threat", "_")]
    if unknown := sorted(set(settings) - set(known)):
        raise InputError(f"{name} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    return attack(threat, **settings)
