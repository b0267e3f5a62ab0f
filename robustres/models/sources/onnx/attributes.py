"""The attributes of a node as plain Python values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustres.errors import ModelError
from robustres.models.sources.onnx.tensors import read_tensor

# Codes of AttributeProto.AttributeType and the fields that hold the values.
FLOAT, INT, STRING, TENSOR, GRAPH, FLOATS, INTS, STRINGS = 1, 2, 3, 4, 5, 6, 7, 8


def read_attributes(node: Any, folder: Path, outer: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes by name; subgraphs are unchanged. outer: the attributes of the function that contains the node."""
    found: dict[str, Any] = {}
    for entry in node.attribute:
        if entry.ref_attr_name:
            if entry.ref_attr_name in outer:
                found[entry.name] = outer[entry.ref_attr_name]
            continue
        found[entry.name] = _value(entry, folder)
    return found


def _value(entry: Any, folder: Path) -> Any:
    if entry.type == FLOAT:
        return float(entry.f)
    if entry.type == INT:
        return int(entry.i)
    if entry.type == STRING:
        return entry.s.decode(errors="replace")
    if entry.type == TENSOR:
        return read_tensor(entry.t, folder)
    if entry.type == GRAPH:
        return entry.g
    if entry.type == FLOATS:
        return [float(number) for number in entry.floats]
    if entry.type == INTS:
        return [int(number) for number in entry.ints]
    if entry.type == STRINGS:
        return [text.decode(errors="replace") for text in entry.strings]
    raise ModelError(f"has an attribute {entry.name} of an unsupported kind (type {entry.type})")
