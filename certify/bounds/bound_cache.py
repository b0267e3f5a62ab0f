"""Bounds that were computed before are used again, for exactly the same network, settings and certifier.

A bound is a function of the network's pieces, the settings and the certifier's own source. All three enter the key as
a digest, so that a changed weight, a changed forward or a changed line of this package never meets an old bound. The
weights alone would not do: another activation between the same weights has another constant.
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
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from robustres.certify.bounds.block_row import BlockRow
from robustres.certify.bounds.pieces import Bounder
from robustres.certify.bounds.whole_network import WholeBound
from robustres.certify.graph.capture import Captured
from robustres.certify.graph.network import Node
from robustres.certify.proof.bound import Guarantee
from robustres.numerics import gamma


class BoundMemory(Protocol):
    """Keeps texts by key; what it gives back must be what was kept, or nothing."""

    def load(self, key: str) -> str | None:
        """The text kept under this key."""
        ...

    def save(self, key: str, text: str) -> None:
        """Keep a text under this key."""
        ...


@dataclass
class Known:
    """What was computed of a network: rows by norm and place in its order, the estimates of rows and network, and the
    bound of the whole network at once."""

    rows: dict[str, dict[int, BlockRow]] = field(default_factory=lambda: {"l2": {}, "linf": {}})
    block_lower: list[float] = field(default_factory=list)
    lower: float = math.nan
    whole: WholeBound | None = None

    @property
    def complete(self) -> bool:
        """Whether this came from memory."""
        return not math.isnan(self.lower)

    def to_text(self) -> str:
        """As JSON; floating-point numbers come back exactly."""
        rows = {norm: [[place, asdict(row)] for place, row in found.items()] for norm, found in self.rows.items()}
        whole = None if self.whole is None else asdict(self.whole)
        return json.dumps({"rows": rows, "block_lower": self.block_lower, "lower": self.lower, "whole": whole})

    @classmethod
    def from_text(cls, text: str | None) -> "Known":
        """What a text says; nothing where there is none or it cannot be read."""
        try:
            content = json.loads(text or "")
            rows = {
                norm: {int(place): _row(record) for place, record in content["rows"][norm]} for norm in ("l2", "linf")
            }
            return cls(
                rows,
                [float(value) for value in content["block_lower"]],
                float(content["lower"]),
                _whole(content["whole"]),
            )
        except (ValueError, KeyError, TypeError):
            return cls()


@dataclass(eq=False)
class RememberingBounder(Bounder):
    """A bounder that looks for a row among the known ones first, and adds what it computes."""

    known: dict[int, BlockRow] = field(default_factory=dict)
    _place: dict[Node, int] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._place = {node: place for place, node in enumerate(self.order)}

    def row(self, node: Node) -> BlockRow:
        """The piece that ends in `node`, from its immediate dominator."""
        place = self._place[node]
        if place not in self.known:
            self.known[place] = super().row(node)
        return self.known[place]


def network_key(captured: Captured, order: Sequence[Node], settings: Mapping[str, Any]) -> str | None:
    """Digest of everything that bounds and estimates follow from; None where a part of it has no canonical form."""
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
    """Digest of the source of the whole certifier, every room of it, and of the versions of what it computes with."""
    digest = hashlib.sha256(repr([(name, version(name)) for name in ("torch", "numpy", "scipy")]).encode())
    digest.update(f"{platform.python_version()} {platform.machine()}".encode())
    for file in certifier_sources():
        digest.update(str(file).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def certifier_sources() -> list[Path]:
    """Every source file that a bound depends on: all rooms of this package, and the numerics below it."""
    package = Path(__file__).resolve().parents[1]
    return [*sorted(package.rglob("*.py")), Path(inspect.getfile(gamma)).resolve()]


def _whole(record: dict[str, Any] | None) -> WholeBound | None:
    return None if record is None else WholeBound(**{**record, "guarantee": Guarantee(**record["guarantee"])})


def _row(record: dict[str, Any]) -> BlockRow:
    return BlockRow(**{**record, "guarantee": Guarantee(**record["guarantee"])})


def _canonical(value: Any) -> Iterator[bytes]:
    """The value as bytes, the same for equal values only; TypeError for what is not known to have such a form."""
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
