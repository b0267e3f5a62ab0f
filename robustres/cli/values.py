"""Parsing of option values: devices, budgets, shapes, numbers, settings of attacks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustres.certify import RandomisedSmoothing
    from robustres.data import ImageSet
    from robustres.threat import Norm


def labels_in_words(images: "ImageSet", *, shown: int = 20) -> str:
    """The folder of each label."""
    listed = ", ".join(f"{label} = {name}" for label, name in enumerate(images.class_names[:shown]))
    return listed + (f", ... {images.classes} in all" if images.classes > shown else "")


def attack_setting(text: str) -> tuple[str, str, Any]:
    """Parse `apgd.steps=200` into the attack, its setting and the value.

    >>> attack_setting("apgd.steps=200"), attack_setting("fab.give_up=false")
    (('apgd', 'steps', 200), ('fab', 'give_up', False))
    """
    from robustres.errors import InputError

    where, found, value = text.partition("=")
    attack, dot, name = where.rpartition(".")
    if not (found and dot and attack and name and value):
        raise InputError(f"--attack-setting must be ATTACK.SETTING=VALUE such as apgd.steps=200, got {text!r}")
    return attack, name, _value(value)


def _value(text: str) -> Any:
    """Parse an integer, a number or fraction, true or false, or a string."""
    from robustres.errors import InputError
    from robustres.threat import parse_number

    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return parse_number(text)
    except InputError:
        return text


def pick_device(name: str) -> str:
    """The device named by an option; `auto` selects a GPU if one is available."""
    import torch

    from robustres.errors import InputError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r} asks for a GPU and none is usable here; use --device cpu")
    return name


def budgets(norm: str, eps: str | None, *, certified: bool = False) -> "dict[Norm, tuple[float, ...]]":
    """The eps to use in a norm: those given, or the conventional ones.

    certified: whether only certificates are requested, so that the norm must be one that they support.
    """
    from robustres.errors import InputError
    from robustres.threat import ATTACK_NORMS, ThreatModel, parse_numbers

    given = None if eps is None else parse_numbers(eps)
    for budget in given or ():
        ThreatModel("l0" if norm == "l0" else "l2", budget)  # before slow imports
    from robustres.evaluation import CONVENTIONAL_EPS

    known = next((name for name in (CONVENTIONAL_EPS if certified else ATTACK_NORMS) if name == norm), None)
    if known is None:
        allowed = ", ".join(CONVENTIONAL_EPS if certified else ATTACK_NORMS)
        reason = ", for which there are certificates" if certified else ""
        raise InputError(f"--norm must be one of {allowed}{reason}, got {norm!r}")
    if given is None and known not in CONVENTIONAL_EPS:
        raise InputError(f"there is no conventional eps in {norm}; give one or several by --eps")
    return {known: CONVENTIONAL_EPS[known] if given is None else given}


def thoroughness(joint: bool, effort: float | None) -> dict[str, Any]:
    """How thoroughly to bound, as `Settings` and `lipschitz` accept it."""
    return {"joint": joint} if effort is None else {"joint": joint, "effort": effort}


def smoothing(sigma: float | None, samples: int, seed: int) -> "RandomisedSmoothing | None":
    """The smoothing requested by the options."""
    from robustres.certify import RandomisedSmoothing

    return None if sigma is None else RandomisedSmoothing(sigma, estimation_samples=samples, seed=seed)


def number(text: str | None) -> float | None:
    """Parse a number or a fraction, if one was given."""
    from robustres.threat import parse_number

    return None if text is None else parse_number(text)


def statistics(mean: str | None, std: str | None) -> dict[str, Any]:
    """The given normalisation, as `load_model` accepts it."""
    from robustres.threat import parse_numbers

    return {name: parse_numbers(text) for name, text in (("mean", mean), ("std", std)) if text is not None}


def parse_shape(text: str) -> tuple[int, int, int]:
    """Parse channels, height and width."""
    from robustres.errors import InputError

    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--input-shape must be channels,height,width such as 3,32,32, got {text!r}") from error
    return channels, height, width
