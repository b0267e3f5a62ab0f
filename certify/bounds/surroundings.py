"""What the code of a model can read besides the model: closures, globals, defaults, attributes of classes.

A deep copy of a model shares all of these with it, so a comparison of the two cannot show that one of them has changed.
"""

import hashlib
import types
from collections import deque
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from robustres.certify.bounds.alike import copied_state
from robustres.certify.graph.code import is_foreign, names_of

PLAIN = (bool, int, float, complex, str, bytes, type(None), range, slice, torch.dtype, torch.device, torch.Size)
MOST = 50_000  # values that are followed; of a model with more nothing is known
UNREAD = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"})  # attributes of classes


class Surroundings:
    """A digest of everything that the methods and functions of a model can read, except its own tensors.

    Equal digests mean the same code with the same values around it. What has no content that could be compared counts
    by its identity, and is kept alive for that. digest: None if there is too much.
    """

    def __init__(self, model: nn.Module) -> None:
        self._inside = {id(part) for part in model.modules()}
        self._own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._places: dict[int, int] = {}
        self._kept: list[Any] = []
        found = hashlib.sha256()
        for part in self._walk(model):
            found.update(part)
        self.digest = found.hexdigest() if len(self._kept) <= MOST else None

    def same_for(self, model: nn.Module) -> bool:
        """Whether those of this model have the same digest."""
        return self.digest is not None and self.digest == Surroundings(model).digest

    def _walk(self, model: nn.Module) -> Iterator[bytes]:
        stack: list[Any] = [model]
        while stack and len(self._kept) <= MOST:
            value = stack.pop()
            if type(value) in PLAIN:
                yield f"{type(value).__name__} {value!r};".encode()
            elif id(value) in self._own:
                yield b"own"
            elif id(value) in self._places:
                yield f"again {self._places[id(value)]};".encode()
            else:
                self._places[id(value)] = len(self._kept)
                self._kept.append(value)
                described, parts = self._described(value)
                yield f"{described} {len(parts)};".encode()
                stack.extend(reversed(parts))

    def _described(self, value: Any) -> tuple[str, list[Any]]:
        """A text about the value itself, and the values that it is made of."""
        match value:
            case Tensor():
                return _contents(value), []
            case list() | tuple() | deque():
                return "sequence", [type(value), *value, *_state(value)]
            case set() | frozenset():
                return "set", sorted(value, key=repr)
            case Mapping():
                return "mapping", [type(value), *(part for pair in value.items() for part in pair), *_state(value)]
            case types.FunctionType() if not is_foreign(value):
                cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
                kept = [value.__defaults__, value.__kwdefaults__, vars(value)]
                return "function", [value.__code__, *cells, *kept, *_read(value.__code__, value.__globals__)]
            case types.CodeType():
                return f"code {value.co_code.hex()} {value.co_names} {value.co_varnames}", list(value.co_consts)
            case types.MethodType():
                return "method", [value.__func__, value.__self__]
            case staticmethod() | classmethod():
                return "wrapped", [value.__func__]
            case property():
                return "property", [value.fget]
            case cached_property():
                return "property", [value.func]
            case partial():
                return "partial", [value.func, value.args, value.keywords]
            case type() if not is_foreign(value):
                own = {name: part for name, part in vars(value).items() if name not in UNREAD}
                return f"class {value.__qualname__}", [*value.__mro__[1:], *(x for pair in own.items() for x in pair)]
            case type() if issubclass(value, nn.Module):
                return f"{id(value)} {id(value.forward)} {id(value.__call__)}", []
            case nn.Module() if id(value) in self._inside:
                return "module", [type(value), {k: v for k, v in vars(value).items() if k != "training"}]
            case type() | types.FunctionType() | types.BuiltinFunctionType() | types.ModuleType():
                return f"object {id(value)}", []
            case _ if is_foreign(type(value)):
                state = copied_state(value)
                return ("object", [type(value), *state]) if state else (f"object {id(value)}", _state(value))
            case _:
                return "object", [type(value), *_state(value)]


def _state(value: Any) -> list[Any]:
    """The attributes of an object, in its dictionary and in slots."""
    names = [name for kind in type(value).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    slots = [getattr(value, name) for name in names if hasattr(value, name)]
    return [*([vars(value)] if hasattr(value, "__dict__") and not isinstance(value, types.ModuleType) else []), *slots]


def _names(slots: Any) -> list[str]:
    return [slots] if isinstance(slots, str) else [name for name in slots if not name.startswith("__")]


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return False


def _read(code: types.CodeType, around: Mapping[str, Any]) -> list[Any]:
    """The globals that a function reads by name, and the attributes of modules among them."""
    read, names = names_of(code)
    found = {name: around[name] for name in read if name in around}
    for name, value in list(found.items()):
        if isinstance(value, types.ModuleType):
            found |= {f"{name}.{part}": vars(value)[part] for part in names if part in vars(value)}
    return [part for name in sorted(found) for part in (name, found[name])]


def _contents(tensor: Tensor) -> str:
    """The values of a tensor, or its identity if they cannot be read."""
    try:
        held = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    except Exception:  # any error of torch: sparse, quantised or without values
        return f"tensor {id(tensor)}"
    return f"tensor {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(held).hexdigest()}"
