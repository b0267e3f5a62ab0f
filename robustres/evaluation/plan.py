"""Which attacks and certificates an evaluation runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from robustres.attacks import Attack, OwnAttack, make_attack
from robustres.attacks.registry import attack_class
from robustres.certify import Certificate, LipschitzReport, LocalCertificate, NetworkCertificate
from robustres.errors import InputError
from robustres.evaluation.plugins import imported, is_threat
from robustres.results import Requirement, eps_words
from robustres.threat import Norm, ThreatModel

if TYPE_CHECKING:
    from robustres.evaluation.settings import Settings


def planned_attacks(settings: "Settings") -> list[Attack]:
    """Every attack at every eps; a minimum-norm attack only once per norm, since one run of it serves every eps.

    A name, "package.module:name" or a class is instantiated for every threat; an object brings its own. Raises
    InputError for an unknown name, setting or norm of an attack, and for two attacks with the same name.
    """
    attacks = [attack for entry in settings.attacks for attack in _attacks(entry, settings)]
    named = {entry for entry in settings.attacks if isinstance(entry, str)}
    if settings.diagnose and "pgd" not in named:  # the diagnosis runs it: its settings are checked like an attack's
        named.add("pgd")
        _attacks("pgd", settings)
    if unused := sorted(settings.attack_settings.keys() - named):
        raise InputError(f"there are settings for {unused[0]!r}, which is not among the attacks")
    _require_names([(attack.name, attack.threat) for attack in attacks], "attacks")
    return attacks


def _attacks(entry: Any, settings: "Settings") -> list[Attack]:
    if not isinstance(entry, str) and not isinstance(entry, type):
        return [_as_attack(entry)]
    shared = {"seed": settings.seed}
    given = settings.attack_settings.get(entry, {}) if isinstance(entry, str) else {}
    if isinstance(entry, str) and (":" not in entry or entry.startswith("torchattacks:")):
        threats = _threats(attack_class(entry), settings)
        return [make_attack(entry, threat, **{**shared, **given}) for threat in threats]
    factory = imported(entry) if isinstance(entry, str) else entry
    threats = settings.threats()
    if isinstance(factory, type) and issubclass(factory, Attack):
        given, threats = {**shared, **given}, _threats(factory, settings)
    try:
        return [_as_attack(factory(threat, **given)) for threat in threats]
    except TypeError as error:
        raise InputError(f"cannot make the attack {entry} from a threat and {given}: {error}") from error


def _threats(attack: type[Attack], settings: "Settings") -> Sequence[ThreatModel]:
    """Every threat, or one unbounded per norm for a minimum-norm attack."""
    return [ThreatModel(norm, math.inf) for norm in settings.eps] if attack.minimum_norm else settings.threats()


def _as_attack(entry: Any) -> Attack:
    """An attack object unchanged, or a wrapper that turns the proposals of a user's object into an attack."""
    if isinstance(entry, Attack):
        return entry
    name = getattr(entry, "name", None)
    if not callable(entry) or not is_threat(entry) or not isinstance(name, str) or not name:
        raise InputError(
            f"an attack is a name, or an object with `name`, `threat` (a ThreatModel) and __call__(model, x, y), got "
            f"{entry!r}"
        )
    return OwnAttack(entry.threat, propose=entry, called=name)


def _require_names(named: Sequence[tuple[str, Any]], what: str) -> None:
    for position, one in enumerate(named):
        if one in named[:position]:
            raise InputError(f"two {what} are called {one[0]!r}; give one of them another name")


Place = tuple[str | None, float | None]
# How a named certificate is made for a norm.
Maker = Callable[["Settings", LipschitzReport, Norm], Certificate]


def _of_network(certificate: Any) -> Maker:
    return lambda settings, report, norm: NetworkCertificate(
        norm=norm,  # type: ignore[arg-type]
        certificate=certificate,
        report=report,
        dtype=getattr(torch, settings.dtype),
    )


def _local(settings: "Settings", report: LipschitzReport | None, norm: Norm) -> Certificate:
    usable = report if report is not None and not report.refused else None
    aims = tuple(settings.counted_eps().get(norm, ())) if settings.aim_at_eps else ()
    seconds = settings.seconds_per_image or LocalCertificate.seconds
    return LocalCertificate(norm, seconds, usable, aims, dtype=getattr(torch, settings.dtype))


CERTIFICATES: Mapping[str, Maker] = MappingProxyType(
    {"lipschitz": _of_network("lipschitz"), "best": _of_network("best"), "local": _local}
)
# Certificates that need no bound on the whole network.
AROUND_IMAGES = frozenset({"local"})


def check_certificates(entries: Sequence[Any]) -> None:
    """Raise InputError for an entry that is not a certificate."""
    for entry in entries:
        if isinstance(entry, str) and ":" in entry:
            imported(entry)
        elif isinstance(entry, str) and entry not in CERTIFICATES:
            raise InputError(f"certificate must be {', '.join(CERTIFICATES)} or package.module:name, got {entry!r}")
        elif not isinstance(entry, str):
            _as_certificate(entry)


def planned_certificates(settings: "Settings", report: LipschitzReport | None) -> list[Certificate]:
    """Every certificate: named ones in each norm, and only if the network has bounds; objects unchanged."""
    planned: list[Certificate] = [] if settings.smoothing is None else [settings.smoothing]
    if not settings.certify:
        return planned
    bounded = report is not None and not report.refused
    for entry in settings.certificates():
        if isinstance(entry, str) and entry in CERTIFICATES:
            names = [entry]
            if entry == "best" and settings.seconds_per_image and "local" not in settings.certificates():
                names.append("local")
            for name in names:
                norms = settings.certified_norms() if bounded or name in AROUND_IMAGES else ()
                planned += [CERTIFICATES[name](settings, report, norm) for norm in norms]  # type: ignore[arg-type]
        else:
            planned.append(_as_certificate(imported(entry)() if isinstance(entry, str) else entry))
    return planned


def _as_certificate(entry: Any) -> Certificate:
    name = getattr(entry, "name", None)
    if not callable(entry) or isinstance(entry, type) or not isinstance(name, str) or not name:
        raise InputError(
            f"a certificate is a name, or an object with `name` and __call__(model, x, indices=...) that returns "
            f"a RadiusColumn, got {entry!r}"
        )
    return entry  # type: ignore[no-any-return]


def check_countable(required: Sequence[Requirement], settings: "Settings") -> None:
    """Raise InputError for a threshold on something that the run will not measure."""
    attacked: set[Place] = {(attack.threat.norm, attack.threat.eps) for attack in planned_attacks(settings)}
    counted: set[Place] = {(norm, eps) for norm, budgets in settings.counted_eps().items() for eps in budgets}
    reported: set[Place] = {(norm, eps) for norm, budgets in settings.reported_eps().items() for eps in budgets}
    for one in required:
        places = counted if one.what == "certified" else {(None, None)} if one.what == "clean" else attacked | reported
        near = any(
            norm == one.norm and (eps == one.eps or math.isclose(eps or 0, one.eps or 0)) for norm, eps in places
        )
        if not near:
            known = ", ".join(sorted(f"{norm}:{eps_words(eps)}" for norm, eps in places if eps and math.isfinite(eps)))
            raise InputError(f"{one} refers to an eps that this run does not evaluate; it evaluates {known or 'none'}")
