"""Checks that a manifest can be read: its version, and the structure of all entries that readers use."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustres.errors import InputError
from robustres.results.schema import MOST_CLASSES, READABLE_VERSIONS, SCHEMA_VERSION
from robustres.threat import ATTACK_NORMS, NORMS


def checked_manifest(content: Any, file: Path) -> dict[str, Any]:
    """The manifest, if it has a valid structure; InputError names the entry that does not.

    Missing entries are left to the reader; unknown entries are kept.
    """
    if not isinstance(content, dict):
        raise InputError(
            f"{file} must contain a JSON object, found {_kind(content)}; give a folder written by robustres"
        )
    version = content.get("schema_version", SCHEMA_VERSION)
    if version not in READABLE_VERSIONS or isinstance(version, bool):
        raise InputError(
            f"{file} has schema version {version!r}; this version of robustres reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}: use the version that wrote it, or evaluate again"
        )
    for entry, (fits, wanted) in _ENTRIES.items():
        value: Any = content
        *above, last = entry.split(".")
        for key in above:
            value = value.get(key) or {}
        if last in value and value[last] is not None and not fits(value[last]):
            raise InputError(
                f"{file}: {entry} must be {wanted}, found {_kind(value[last])}; "
                "restore the file, or start this run over with --overwrite"
            )
    return content


def _kind(value: Any) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)


def _every(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _budgets(value: Any) -> bool:
    positive = _every(lambda eps: _number(eps) and eps > 0)
    return isinstance(value, dict) and all(norm in ATTACK_NORMS and positive(eps) for norm, eps in value.items())


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _classes(value: Any) -> bool:
    return _count(value) and value <= MOST_CLASSES


def _refusal(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("path", "operation"))


def _attack(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


_TEXT = (_is(str), "text")
_OBJECT = (_is(dict), "an object")
# Every entry that a reader uses, an object before its entries: a check of the value, and what it must be.
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": _TEXT,
    "name": _TEXT,
    "created": _TEXT,
    "command": (lambda value: isinstance(value, str) or _every(_is(str))(value), "a string or a list of strings"),
    "identity": _OBJECT,
    "model": _OBJECT,
    "model.source": _TEXT,
    "model.sha256": _TEXT,
    "model.name": _TEXT,
    "model.mean": (_every(_number), "a list of numbers"),
    "model.std": (_every(_number), "a list of numbers"),
    "model.parameters": (_count, "a count"),
    "model.note": _TEXT,
    "data": _OBJECT,
    "data.source": _TEXT,
    "data.sha256": _TEXT,
    "data.note": _TEXT,
    "data.classes": (_classes, f"a count of at most {MOST_CLASSES}"),
    "data.class_names": (_every(_is(str)), "a list of strings"),
    "eps": (_budgets, f"an object of {', '.join(ATTACK_NORMS)} with lists of positive numbers"),
    "lipschitz": _OBJECT,
    "lipschitz.norm": (lambda value: value in NORMS, f"one of {', '.join(NORMS)}"),
    "lipschitz.upper": (_number, "a number"),
    "lipschitz.lower": (_number, "a number"),
    "refused": (_every(_refusal), "a list of objects with path and operation"),
    "attacks": (_every(_attack), "a list of objects with a name"),
    "require": (_every(_is(str)), "a list of strings"),
    "parts": (_every(_is(str)), "a list of names"),
    "samples": (_count, "a count"),
    "settings": _OBJECT,
    "versions": _OBJECT,
    "hardware": _OBJECT,
}
