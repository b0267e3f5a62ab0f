"""An opened ONNX file: a graph from images to logits, the versions of its operators, its weights and its functions."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustres.errors import ModelError
from robustres.models.sources.onnx.tensors import dtype_of, read_tensor, store_tensor

# The supported operator sets.
OLDEST, NEWEST = 7, 25
STANDARD = frozenset({"", "ai.onnx"})
# Largest number of nodes; published networks have a few thousand.
MOST_NODES = 50_000
# Largest nesting depth of functions and branches.
DEEPEST = 16
# protobuf cannot write larger files.
LARGEST_FILE = 2**31 - 1


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """The contents of a file, with its sizes checked.

    images, logits: the names of the input and the output. dtype: of the images. sides: the sizes of the input, batch
    first; None where the file leaves a size open. functions: by domain and name.
    """

    path: Path
    proto: Any
    opset: int
    images: str
    dtype: torch.dtype
    sides: tuple[int | None, ...]
    logits: str
    weights: Mapping[str, Tensor]
    functions: Mapping[tuple[str, str], Any]

    @property
    def fixed_batch(self) -> int | None:
        """The fixed batch size stated in the file, if any."""
        return self.sides[0]

    def plain(self) -> bytes:
        """The file for onnxruntime: only the nodes needed for the output, with all weights inside."""
        from onnx import ModelProto

        proto = ModelProto()
        proto.CopyFrom(self.proto)
        graph = self.proto.graph
        nodes = [node for node, _ in needed(graph.node, [self.logits])]
        names = {name for node in nodes for name in used_names(node)} | {self.logits}
        for field in ("node", "input", "initializer", "value_info", "quantization_annotation"):
            proto.graph.ClearField(field)
        proto.graph.node.extend(nodes)
        proto.graph.input.extend(value for value in graph.input if value.name == self.images or value.name in names)
        for name in sorted(names & set(self.weights)):
            store_tensor(proto.graph.initializer.add(), name, self.weights[name])
        try:
            content: bytes = proto.SerializeToString()
        except Exception as error:
            raise ModelError("its weights take more than 2 GiB, so it cannot be compared with onnxruntime") from error
        return content


def needed(nodes: Any, wanted: Iterable[str]) -> list[tuple[Any, tuple[bool, ...]]]:
    """The nodes on which `wanted` depends, in order, and which outputs of each are used."""
    names, found = set(wanted), []
    for node in reversed(nodes):
        used = tuple(name in names and name != "" for name in node.output)
        if any(used):
            found.append((node, used))
            names.update(used_names(node))
    return found[::-1]


def used_names(node: Any, depth: int = 0) -> Iterator[str]:
    """The names of the inputs of a node, including those of its branches."""
    yield from node.input
    for entry in node.attribute:
        if entry.HasField("g") and depth < DEEPEST:
            yield from (value.name for value in entry.g.output)
            for inner in entry.g.node:
                yield from used_names(inner, depth + 1)


def open_file(path: Path) -> OnnxFile:
    """Read a file; raises ModelError if it is damaged, refers to files outside its folder or is not a classifier."""
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ModelError(f"it has {path.stat().st_size} bytes; ONNX files have at most {LARGEST_FILE}")
        proto = ModelProto.FromString(path.read_bytes())
    except (DecodeError, OSError, RuntimeError) as error:
        raise ModelError(f"it is not an ONNX file, or it is damaged: {first_line(error)}") from error
    graph = proto.graph
    if not graph.node or not graph.output:
        raise ModelError("it holds no graph")
    if len(graph.node) > MOST_NODES:
        raise ModelError(f"it has {len(graph.node)} nodes; up to {MOST_NODES} are supported")
    if graph.sparse_initializer:
        raise ModelError("it has sparse weights, which are not supported")
    weights = {tensor.name: read_tensor(tensor, path.parent) for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ModelError(f"it has {len(inputs)} inputs and {len(graph.output)} outputs; a classifier has one of each")
    del graph.initializer[:]
    functions = {(function.domain, function.name): function for function in proto.functions}
    return OnnxFile(
        path,
        proto,
        opset_of(proto.opset_import),
        inputs[0].name,
        dtype_of(inputs[0].type.tensor_type.elem_type),
        _sides(inputs[0]),
        graph.output[0].name,
        weights,
        functions,
    )


def opset_of(imports: Any) -> int:
    """The version of the standard operators; raises ModelError if it is not supported."""
    versions = [entry.version for entry in imports if entry.domain in STANDARD]
    if len(versions) != 1 or not OLDEST <= versions[0] <= NEWEST:
        said = ", ".join(str(version) for version in versions) or "none"
        raise ModelError(f"its operator set is {said}; {OLDEST} to {NEWEST} are supported: export it with one of them")
    return int(versions[0])


def first_line(error: BaseException) -> str:
    """The message of an error, in one line of bounded length."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def _sides(value: Any) -> tuple[int | None, ...]:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not dtype_of(kind.elem_type).is_floating_point:
        raise ModelError(f"its input {value.name!r} is not a floating-point tensor, as images must be")
    sides = tuple(side.dim_value if side.HasField("dim_value") else None for side in kind.shape.dim)
    if len(sides) < 2 or any(side is not None and side < 0 for side in sides):
        raise ModelError(f"it takes inputs of shape {sides}; images (N, C, H, W) are needed")
    return (sides[0] or None, *sides[1:])
