"""The user's own attacks and certificates: imported by name, and described so that a manifest distinguishes them."""

import hashlib
import importlib
import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustres.certify import LipschitzReport
from robustres.errors import InputError
from robustres.threat import ThreatModel


def imported(words: str) -> Any:
    """The object that `package.module:name` refers to, with the working directory on the path, as for `python -m`."""
    module, _, attribute = words.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot import {words} ({error}); check the name and the path") from error
    return found


def described(thing: Any) -> Any:
    """A plug-in, or one of its settings, as JSON that changes whenever it would compute something else.

    An object is described by its class, its settings and, if it is not part of this package, a digest of the source of
    its class. Raises InputError for a setting that cannot be distinguished from another, such as an open file.
    """
    if thing is None or isinstance(thing, str | bool | int):
        return thing
    if isinstance(thing, float):
        return thing if math.isfinite(thing) else str(thing)
    if isinstance(thing, torch.dtype | torch.device | Path):
        return str(thing)
    if isinstance(thing, Mapping):
        return {str(key): described(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple | set | frozenset):
        return [described(value) for value in (sorted(thing) if isinstance(thing, set | frozenset) else thing)]
    if isinstance(thing, Tensor | np.ndarray | np.generic):
        return _array(torch.as_tensor(thing).detach().cpu())
    if isinstance(thing, nn.Module):
        return {"class": _name(type(thing)), "state": {key: _array(value) for key, value in thing.state_dict().items()}}
    if isinstance(thing, LipschitzReport):
        return {"class": _name(type(thing)), "upper": described(thing.upper)}
    if isinstance(thing, type) or inspect.isroutine(thing):
        return {"class": _name(thing), **_source(thing)}
    names = [field.name for field in fields(thing)] if is_dataclass(thing) else sorted(getattr(thing, "__dict__", {}))
    if not names and not type(thing).__module__.startswith("robustres") and not _source(type(thing)):
        raise InputError(
            f"cannot distinguish {thing!r} from another {type(thing).__name__} in a manifest; its settings must be "
            "numbers, "
            "strings, tensors, or dataclasses of these"
        )
    settings = {name: described(getattr(thing, name)) for name in names if name != "_"}
    return {"class": _name(type(thing)), "settings": settings, **_source(type(thing))}


def attack_settings(attack: Any) -> dict[str, Any]:
    """Every setting of an attack with the defaults filled in, except the threat."""
    settings = described(attack)["settings"]
    return {name: value for name, value in settings.items() if name not in ("threat", "batch_size")}


def _array(values: Tensor) -> dict[str, Any]:
    content = values.detach().cpu().contiguous()
    digest = hashlib.sha256(content.view(-1).view(torch.uint8).numpy().tobytes() if content.numel() else b"")
    return {"shape": list(values.shape), "dtype": str(values.dtype), "sha256": digest.hexdigest()}


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _source(kind: Any) -> dict[str, str]:
    """A digest of the source, if it is not part of this package and can be read."""
    if (getattr(kind, "__module__", "") or "").split(".")[0] in ("robustres", "builtins"):
        return {}
    try:
        return {"source": hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()[:16]}
    except (OSError, TypeError):
        return {}


def is_threat(thing: Any) -> bool:
    """Whether an object states its threat model."""
    return isinstance(getattr(thing, "threat", None), ThreatModel)
