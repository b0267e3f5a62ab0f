"""Which attacks an evaluation runs."""

import math

from robustres.attacks import Attack, make_attack
from robustres.attacks.registry import MINIMUM_NORM
from robustres.evaluation.settings import Settings
from robustres.threat import ThreatModel


def planned_attacks(settings: Settings) -> list[Attack]:
    """Every attack at every eps; a minimum-norm attack once per norm, since one run of it serves every eps.

    Raises InputError for a name, a setting or a norm that the attack does not know.
    """
    attacks = []
    for name in settings.attacks:
        threats = settings.threats()
        if name in MINIMUM_NORM:
            threats = [ThreatModel(norm, math.inf) for norm in settings.eps]
        keywords = {"seed": settings.seed, **settings.attack_settings.get(name, {})}
        attacks += [make_attack(name, threat, **keywords) for threat in threats]
    return attacks
