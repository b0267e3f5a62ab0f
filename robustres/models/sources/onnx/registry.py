"""The supported operators, each with the versions of its specification that its function covers."""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call

Operator = Callable[[Call], Any]
OPERATORS: dict[str, tuple[tuple[int, ...], Operator]] = {}


def operator(name: str, *versions: int) -> Callable[[Operator], Operator]:
    """Register a function for an operator of ONNX.

    versions: the operator sets in which the specification changed and that the function covers, starting with the one
    that applies in set 7 (or the first one). The function returns one result or a tuple of results.
    """

    def register(function: Operator) -> Operator:
        assert list(versions) == sorted(set(versions))
        assert name not in OPERATORS
        OPERATORS[name] = (versions, function)
        return function

    return register


def lookup(name: str, opset: int) -> tuple[int, Operator]:
    """The version that applies in an operator set, and its function."""
    if name not in OPERATORS:
        raise ModelError("is not a supported operator")
    versions, function = OPERATORS[name]
    place = bisect_right(versions, opset)
    if place == 0:
        raise ModelError(f"is not an operator of set {opset}")
    return versions[place - 1], function


def table() -> str:
    """All operators as a Markdown table."""
    rows = (f"| {name} | {', '.join(map(str, versions))} |\n" for name, (versions, _) in sorted(OPERATORS.items()))
    return "| operator | specifications |\n|---|---|\n" + "".join(rows)
