"""Conversion of an ONNX graph to a graph of torch operations, node by node; known values are computed at once."""

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from robustres.errors import ModelError
from robustres.models.sources.onnx import operators as _registered  # noqa: F401
from robustres.models.sources.onnx.attributes import read_attributes
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.file import (
    DEEPEST,
    MOST_NODES,
    STANDARD,
    OnnxFile,
    first_line,
    needed,
    opset_of,
)
from robustres.models.sources.onnx.registry import lookup
from robustres.models.sources.onnx.tensors import read_tensor
from robustres.models.sources.onnx.traced import Bounded, Known, Recorder, Traced

# Batch sizes for which shapes are computed; two determine a size that is linear in the batch, the third is a check.
BATCHES = (2, 3, 5)
# Largest number of elements of a known tensor that depends on the batch size: shapes, indices and results of these.
LARGEST_SHAPE = 2**20
# Largest number of elements that may be computed while the file is read, in addition to its weights.
LARGEST_KNOWN = 2**27
Value = Known | Traced
Scope = MutableMapping[str, Value]


@dataclass(frozen=True, eq=False)
class Conversion:
    """rewritten: whether a batch size in the file was replaced. work: multiplications for one image."""

    module: fx.GraphModule
    rewritten: bool
    work: float


def convert(file: OnnxFile, sides: tuple[int, ...], *, any_batch: bool = True) -> Conversion:
    """The network of a file for images of these sizes; raises ModelError that names unsupported parts.

    any_batch: convert for any number of images, otherwise for the number stated in the file.
    """
    fixed = file.fixed_batch
    batches = BATCHES if fixed is None else tuple(dict.fromkeys((fixed, *BATCHES))) if any_batch else (fixed,)
    recorder = Recorder(batches)
    reader = _Reader(file, recorder)
    scope: Scope = {file.images: recorder.images(sides, file.dtype)}
    reader.add_weights(scope, file.weights)
    with torch.no_grad():
        reader.run(file.proto.graph.node, [file.logits], scope, file.opset, {}, depth=0)
    logits = scope.get(file.logits)
    if not isinstance(logits, Traced):
        raise ModelError("its output does not depend on the images")
    if logits.ndim != 2 or tuple(shape.shape[0] for shape in logits.shapes) != batches:
        shapes = " and ".join(str(tuple(shape.shape)) for shape in logits.shapes)
        raise ModelError(f"its output has the shapes {shapes} for {batches} images; it must be logits (N, classes)")
    return Conversion(recorder.finish(logits), recorder.rewritten, recorder.work)


class _Reader:
    """Converts graphs, the branches of `If` and the bodies of functions."""

    def __init__(self, file: OnnxFile, recorder: Recorder) -> None:
        self.file, self.recorder = file, recorder
        self.nodes = self.known = 0

    def add_weights(self, scope: Scope, weights: Mapping[str, Tensor]) -> None:
        """Add tensors of the file to the scope under their names."""
        for name, tensor in weights.items():
            self.recorder.named(name, tensor, trainable=True)
            scope[name] = Known((tensor,) * len(self.recorder.batches))

    def run(
        self, nodes: Any, wanted: Iterable[str], scope: Scope, opset: int, outer: Mapping[str, Any], *, depth: int
    ) -> None:
        """Add the results of the nodes needed for `wanted` to the scope."""
        if depth > DEEPEST:
            raise ModelError(f"its functions and branches are nested more than {DEEPEST} deep")
        for node, used in needed(nodes, wanted):
            self.nodes += 1
            if self.nodes > MOST_NODES:
                raise ModelError(f"its functions expand to more than {MOST_NODES} nodes")
            try:
                results = self._results(node, used, scope, opset, outer, depth)
            except ModelError as error:
                raise error if getattr(error, "placed", False) else _placed(node, str(error)) from error
            except (
                RuntimeError,
                TypeError,
                ValueError,
                IndexError,
                OverflowError,
                NotImplementedError,
                AttributeError,
                KeyError,
            ) as error:
                raise _placed(node, f"does not fit its inputs ({first_line(error)})") from error
            for name, value in zip(node.output, results, strict=False):
                if name and name in scope:
                    raise _placed(node, f"defines {name!r} a second time")
                if name:
                    scope[name] = value

    def _results(
        self, node: Any, used: tuple[bool, ...], scope: Scope, opset: int, outer: Mapping[str, Any], depth: int
    ) -> list[Value]:
        attributes = read_attributes(node, self.file.path.parent, outer)
        for name in node.input:
            if name and name not in scope:
                raise ModelError(f"takes {name!r}, which no earlier node defines")
        inputs = [scope[name] if name else None for name in node.input]
        if (node.domain, node.op_type) in self.file.functions:
            return self._function(self.file.functions[node.domain, node.op_type], inputs, attributes, depth)
        if node.domain not in STANDARD:
            raise ModelError(
                f"is an operator of the domain {node.domain!r}; only standard ONNX operators are supported"
            )
        if node.op_type == "If":
            return self._branch(inputs, attributes, scope, opset, outer, depth)
        version, function = lookup(node.op_type, opset)
        call = Call(
            node.op_type, version, _stored_name(node), attributes, inputs, used, self.recorder,
            self.file.fixed_batch if len(self.recorder.batches) > 1 else None,
        )  # fmt: skip
        if all(isinstance(value, Known) for value in inputs if value is not None):
            folded = self._folded(function, call, node)
            if folded is not None:
                return folded
        result = function(call)
        return [self._value(item) for item in (result if isinstance(result, tuple) else (result,))]

    def _value(self, item: Any) -> Value:
        if isinstance(item, Tensor):
            return Known((item,) * len(self.recorder.batches))
        assert isinstance(item, Known | Traced), item
        return item

    def _folded(self, function: Any, call: Call, node: Any) -> list[Value] | None:
        """The results of an operator whose inputs are known; None if they are too large to keep for each batch size."""
        counts = len(self.recorder.batches)
        constant = all(value.constant for value in call.inputs if isinstance(value, Known))
        places = range(1 if constant else counts)
        made: list[tuple[Any, ...]] = []
        for place in places:
            with Bounded():
                shapes = _tuple(function(_at(call, place, shapes_only=True)))
            if not constant and any(shape.numel() > LARGEST_SHAPE for shape in shapes):
                return None
            self.known += sum(shape.numel() for shape in shapes)
            if self.known > LARGEST_KNOWN:
                raise ModelError(f"brings the constants computed so far to more than {LARGEST_KNOWN} elements")
            made.append(_tuple(function(_at(call, place, shapes_only=False))))
        results: list[Value] = []
        for name, parts in zip(node.output, zip(*made, strict=True), strict=False):
            if constant:
                self.recorder.named(name, parts[0], trainable=False)
                results.append(Known(parts * counts))
            elif len({part.shape for part in parts}) > 1:
                if parts[0].dtype != torch.int64:  # copies for each image, which the network computes itself
                    return None
                results.append(Known(tuple(parts)))
            else:
                same = all(torch.equal(part, parts[0]) for part in parts)
                results.append(Known((parts[0],) * counts if same else tuple(parts)))
        return results

    def _function(
        self, function: Any, inputs: list[Value | None], attributes: dict[str, Any], depth: int
    ) -> list[Value]:
        """Apply a function defined in the file."""
        scope: Scope = {name: value for name, value in zip(function.input, inputs, strict=False) if value is not None}
        defaults = read_attributes(_Defaults(function.attribute_proto), self.file.path.parent, {})
        outer = {**defaults, **attributes}
        self.run(function.node, function.output, scope, opset_of(function.opset_import), outer, depth=depth + 1)
        return [_given(scope, name) for name in function.output]

    def _branch(
        self,
        inputs: list[Value | None],
        attributes: dict[str, Any],
        scope: Scope,
        opset: int,
        outer: Mapping[str, Any],
        depth: int,
    ) -> list[Value]:
        """The branch of an `If` that is always taken."""
        condition = inputs[0] if inputs else None
        if not isinstance(condition, Known) or len({bool(value) for value in condition.values}) > 1:
            raise ModelError("chooses its branch depending on the images, which is not supported")
        graph = attributes["then_branch" if bool(condition.values[0]) else "else_branch"]
        inner = dict(scope)
        self.add_weights(inner, {t.name: read_tensor(t, self.file.path.parent) for t in graph.initializer})
        names = [value.name for value in graph.output]
        self.run(graph.node, names, inner, opset, outer, depth=depth + 1)
        return [_given(inner, name) for name in names]


@dataclass(frozen=True)
class _Defaults:
    """The attributes of a function with their defaults, in the form of a node."""

    attribute: Any


def _at(call: Call, place: int, *, shapes_only: bool) -> Call:
    return Call(
        call.operator, call.version, call.name, call.attributes, call.inputs, call.outputs, call.recorder,
        call.fixed_batch, place, shapes_only,
    )  # fmt: skip


def _tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _given(scope: Scope, name: str) -> Value:
    if name not in scope:
        raise ModelError(f"has a body that does not define {name!r}")
    return scope[name]


def _placed(node: Any, what: str) -> ModelError:
    """An error that names the node at which it occurred."""
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    error = ModelError(f"its node {node.name or '/'.join(node.output)!r} ({kind}) {what}"[:600])
    error.placed = True  # type: ignore[attr-defined]
    return error


def _stored_name(node: Any) -> str:
    """The name under which a layer is stored: that of its weight in the exported network, or its own."""
    weight = node.input[1] if len(node.input) > 1 else ""
    if weight.endswith(".weight") and "::" not in weight and "/" not in weight:
        return str(weight.removesuffix(".weight"))
    path = ""
    *scopes, last = node.name.strip("/").split("/")
    for scope in scopes:  # torch writes /layer1/layer1.0/conv1/Conv
        path = scope if path == "" or scope == path or scope.startswith(f"{path}.") else f"{path}.{scope}"
    return path or last or node.op_type.lower()
