"""Numbers that a model changes when it runs, in itself or wherever its code keeps them: counters, lengths of lists."""

import types
from collections import deque
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor, nn

from robustres.certify.graph.code import is_foreign, names_of

AHEAD = (1, 10, 1000, 1_000_000)  # by how much counters are advanced, up or down
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
        if isinstance(container, list | deque):
            found.append((container, None, len(container)))
        for key, value in _items(container):
            if keys is not None and key not in keys:
                continue
            if (number := _number(value)) is not None:
                found.append((container, key, number))
            else:
                stack += _inside(value)
    return found


def advanced(module: nn.Module, before: Counted) -> Iterator[str]:
    """Advance the numbers that have changed since `before`, in several steps, and yield their names after each; they
    are set back at the end."""
    known = {(id(container), key): number for container, key, number in before}
    changed = [
        (container, key, _get(container, key), -1 if number < known.get((id(container), key), number) else 1)
        for container, key, number in numbers_of(module)
        if known.get((id(container), key), number) != number
    ]
    try:
        for ahead in AHEAD if changed else ():
            for container, key, value, sign in changed:
                _set(container, key, _longer(value, sign * ahead) if key is None else value + sign * ahead)
            yield ", ".join(NAMELESS.get(key, str(key)) for _, key, _, _ in changed)
    finally:
        for container, key, value, _ in changed:
            _set(container, key, value)


def _number(value: Any) -> Any:
    """The value as a plain number, also that of one element of torch or NumPy; None for others."""
    if isinstance(value, Tensor | np.ndarray) and value.shape in ((), (1,)):
        value = value.item()
    return value if isinstance(value, Real) and not isinstance(value, bool) else None


def _items(container: Any) -> list[tuple[Any, Any]]:
    match container:
        case dict():
            return list(container.items())
        case list() | deque():
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
        case dict() | list() | deque():
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


def _get(container: Any, key: Any) -> Any:
    """What is there: a number, or the elements of a list."""
    if key is None:
        return list(container)
    return getattr(container, key) if isinstance(container, type | types.CellType) else container[key]


def _set(container: Any, key: Any, value: Any) -> None:
    if isinstance(container, type | types.CellType):
        setattr(container, key, value)
    elif key is not None:
        container[key] = value
    else:
        container.clear()
        container.extend(value)


def _longer(elements: list[Any], count: int) -> list[Any]:
    """With so many more at the end, or fewer."""
    return elements + elements[-1:] * min(count, LONGEST) if count > 0 else elements[: max(0, len(elements) + count)]
