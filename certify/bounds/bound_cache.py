"""A cache of computed bounds, for exactly the same network, settings and certifier.

A bound is a function of the network's pieces, the settings and the certifier's own source. The key is a digest of all
three, so that a stored bound is never used after a change of a weight, of a forward function or of this package. The
weights alone would not suffice: with other activations, the same weights have another constant.
"""

import hashlib
import inspect
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, fx

from robustres.certify.bounds.block_row import BlockRow
from robustres.certify.bounds.whole_network import WholeBound
from robustres.certify.graph.capture import Captured
from robustres.certify.graph.network import Node
from robustres.certify.proof.bound import Guarantee
from robustres.numerics import gamma

Made = TypeVar("Made", BlockRow, WholeBound)


@runtime_checkable
class BoundMemory(Protocol):
    """Storage of texts by key; it must return what was stored, or nothing."""

    def load(self, key: str) -> str | None:
        """The text stored under this key."""
        ...

    def save(self, key: str, text: str) -> None:
        """Store a text under this key."""
        ...


@dataclass
class Known:
    """The results computed for a network: rows by norm and position, estimates of rows and network, and the bound of
    the whole network at once."""

    rows: dict[str, dict[int, BlockRow]] = field(default_factory=lambda: {"l2": {}, "linf": {}})
    block_lower: list[float] = field(default_factory=list)
    lower: float = math.nan
    whole: WholeBound | None = None

    @property
    def complete(self) -> bool:
        """Whether this was loaded from storage."""
        return not math.isnan(self.lower)

    def to_text(self) -> str:
        """As JSON; floating-point numbers are preserved exactly."""
        rows = {norm: [[place, asdict(row)] for place, row in found.items()] for norm, found in self.rows.items()}
        whole = None if self.whole is None else asdict(self.whole)
        return json.dumps({"rows": rows, "block_lower": self.block_lower, "lower": self.lower, "whole": whole})

    @classmethod
    def from_text(cls, text: str | None) -> "Known":
        """The contents of a text; empty if there is none or it cannot be read."""
        try:
            content = json.loads(text or "")
            rows = {
                norm: {int(place): _read(BlockRow, record) for place, record in content["rows"][norm]}
                for norm in ("l2", "linf")
            }
            whole = None if content["whole"] is None else _read(WholeBound, content["whole"])
            return cls(rows, [float(value) for value in content["block_lower"]], float(content["lower"]), whole)
        except (ValueError, KeyError, TypeError):
            return cls()


def network_key(captured: Captured, order: Sequence[Node], settings: Mapping[str, Any]) -> str | None:
    """Digest of everything on which bounds and estimates depend; None if a part of it has no canonical form."""
    places = {node: place for place, node in enumerate(order)}
    names = {node: f"%{place}" for place, node in enumerate((*captured.constants, captured.source, *captured.nodes))}
    digest = hashlib.sha256(certifier_digest().encode())
    try:
        for part in _canonical(dict(settings)):
            digest.update(part)
        for node in order:
            described = (node.piece, tuple(places[parent] for parent in node.inputs), node.shape, node.path)
            for part in _canonical((*described, node.origin.name)):
                digest.update(part)
        for value in captured.constants.values():
            for part in _canonical(value):
                digest.update(part)
    except TypeError:
        return None
    for operation in captured.nodes:
        arguments = fx.node.map_arg((operation.args, operation.kwargs), lambda node: names[node])
        digest.update(f"{operation.target} {arguments!r}".encode())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def certifier_digest() -> str:
    """Digest of the source of the whole certifier and of the versions of the numerical libraries."""
    digest = hashlib.sha256(repr([(name, version(name)) for name in ("torch", "numpy", "scipy")]).encode())
    digest.update(f"{platform.python_version()} {platform.machine()}".encode())
    for file in certifier_sources():
        digest.update(str(file).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def certifier_sources() -> list[Path]:
    """Every source file on which a bound depends: all of this package, and the numerics below it."""
    package = Path(__file__).resolve().parents[1]
    return [*sorted(package.rglob("*.py")), Path(inspect.getfile(gamma)).resolve()]


def _read(kind: type[Made], record: dict[str, Any]) -> Made:
    return kind(**{**record, "guarantee": Guarantee(**record["guarantee"])})


def _canonical(value: Any) -> Iterator[bytes]:
    """The value as bytes, equal only for equal values; raises TypeError for types without such a form."""
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)} {value.device.type}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif is_dataclass(value) and not isinstance(value, type):
        kept = [item.name for item in fields(value) if item.name != "seconds"]
        yield f"{type(value).__module__}.{type(value).__qualname__}({len(kept)}".encode()
        for name in kept:
            yield name.encode()
            yield from _canonical(getattr(value, name))
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key in sorted(value):
            yield from _canonical((key, value[key]))
    elif isinstance(value, tuple | list):
        yield f"sequence {len(value)}".encode()
        for item in value:
            yield from _canonical(item)
    elif value is None or isinstance(value, bool | int | float | str):
        yield f"{type(value).__name__} {value!r};".encode()
    else:
        raise TypeError(f"{type(value).__name__} has no canonical form")
