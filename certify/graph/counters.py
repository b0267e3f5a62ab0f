"""Numbers that a model changes when it runs, in itself or wherever its code keeps them: counters, lengths of lists."""

import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from robustres.certify.graph.code import is_foreign, names_of

AHEAD = (1, 10, 1000, 1_000_000)  # by how much counters are advanced
LONGEST = 2000  # elements by which a list is extended
MOST = 20_000  # containers that are searched
NAMELESS = {None: "the length of a list", "cell_contents": "a variable of an enclosing function"}

# A number by the dictionary, list, class or cell that holds it, and its key there; None for the length of a list.
Counted = list[tuple[Any, Any, float]]
# A container, and the keys to which the search is confined; None for all.
Searched = tuple[Any, frozenset[str] | None]


def numbers_of(module: nn.Module) -> Counted:
    """The plain numbers among the attributes of the module, of its parts and of their classes, and among the variables
    that their code reads elsewhere; also within lists, dictionaries and objects.
    """
    found: Counted = []
    stack = [start for part in module.modules() for start in ((vars(part), None), *_inside(type(part)))]
    met: set[tuple[int, frozenset[str] | None]] = set()
    while stack and len(met) < MOST:
        container, keys = stack.pop()
        if (id(container), keys) in met:
            continue
        met.add((id(container), keys))
        if isinstance(container, list):
            found.append((container, None, len(container)))
        for key, value in _items(container):
            if keys is not None and key not in keys:
                continue
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.append((container, key, value))
            else:
                stack += _inside(value)
    return found


def advanced(module: nn.Module, before: Counted) -> Iterator[str]:
    """Advance the numbers that have changed since `before`, in several steps, and yield their names after each; they
    are set back at the end."""
    known = {(id(container), key): value for container, key, value in before}
    changed = [
        (container, key, value)
        for container, key, value in numbers_of(module)
        if known.get((id(container), key), value) != value
    ]
    try:
        for ahead in AHEAD if changed else ():
            for container, key, value in changed:
                _set(container, key, value + ahead)
            yield ", ".join(NAMELESS.get(key, str(key)) for _, key, _ in changed)
    finally:
        for container, key, value in changed:
            _set(container, key, value)


def _items(container: Any) -> list[tuple[Any, Any]]:
    match container:
        case dict():
            return list(container.items())
        case list():
            return list(enumerate(container))
        case type():
            return list(vars(container).items())
    try:
        return [("cell_contents", container.cell_contents)]
    except ValueError:  # a variable that has no value yet
        return []


def _inside(value: Any) -> list[Searched]:
    """The containers that a value is or consists of, or that its code reads."""
    match value:
        case dict() | list():
            return [(value, None)]
        case tuple():
            return [inner for part in value for inner in _inside(part)]
        case types.FunctionType() if not is_foreign(value):
            around = value.__globals__
            read, names = names_of(value.__code__)
            modules = [around[name] for name in read if isinstance(around.get(name), types.ModuleType)]
            held = _inside((value.__defaults__ or (), value.__kwdefaults__ or {}))
            cells = [(cell, None) for cell in value.__closure__ or ()]
            return [*held, *cells, (around, read), *((vars(other), names) for other in modules)]
        case types.MethodType() | staticmethod() | classmethod():
            return _inside(value.__func__)
        case property():
            return _inside(value.fget)
        case type():
            return [(kind, None) for kind in value.__mro__ if not is_foreign(kind) and kind is not object]
        case _ if is_foreign(type(value)) or not hasattr(value, "__dict__"):
            return []
    return [(vars(value), None), *_inside(type(value))]


def _set(container: Any, key: Any, value: float) -> None:
    if isinstance(container, type | types.CellType):
        setattr(container, key, value)
    elif key is not None:
        container[key] = value
    elif container:
        del container[int(value) :]
        container.extend(container[-1:] * min(int(value) - len(container), LONGEST))
