"""TorchScript files: the script is inspected before it runs, and rewritten as ATen operations.

`torch.jit.load` interprets TorchScript, never Python; but TorchScript has operations on files and may run some of its
code while it is loaded. Archives that do so are refused: based on their text before torch reads it, and on the graph of
the network, in which every call is resolved, before it runs. The first run is in a separate process.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from robustres.errors import ModelError
from robustres.guard import random_state_kept
from robustres.models.sources.allowed_operations import is_allowed
from robustres.models.sources.apart import tried_apart
from robustres.models.sources.archive import Archive
from robustres.models.sources.aten_graph import ARITHMETIC, TRAINING, AtenGraph, aten_operation, require_moderate

log = logging.getLogger(__name__)

# In the archive's code: code that runs while it is loaded, and operations on files.
HOSTILE_CODE = re.compile(r"\b(?:__setstate__|save|from_file)\b")
# What a script may contain besides ATen operations: numbers and lists, branches and loops, and assertions.
PRIMITIVES = frozenset(
    (
        *(
            "Constant",
            "GetAttr",
            "SetAttr",
            "ListConstruct",
            "ListUnpack",
            "TupleConstruct",
            "TupleUnpack",
            "TupleIndex",
            "TupleSlice",
        ),
        *(
            "DictConstruct",
            "If",
            "Loop",
            "NumToTensor",
            "RaiseException",
            "Uninitialized",
            "unchecked_cast",
            "dtype",
            "device",
        ),
        *("layout", "shape", "is_cuda", "is_cpu", "isinstance", "min", "max", "abs", "data"),
        *("grad", "requires_grad", "annotate", "StringIndex"),
    )
)
PROBES = 3
TOLERANCE = 1e-5
# Operations that convert a number from one type to another, or lists that are equal in Python.
CARRIERS = frozenset({"prim::NumToTensor", "aten::Int", "aten::IntImplicit", "aten::ScalarImplicit"})
# Operations on the list of all sizes of a tensor, which has no form in ATen; assertions use it.
UNKNOWN = object()
# Operations whose fourth and fifth arguments are running statistics.
STATISTICS = frozenset({"batch_norm", "instance_norm"})
LISTS = frozenset({"prim::ListConstruct", "prim::TupleConstruct"})


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive with TorchScript code; opening it to this point executes nothing."""
    try:
        return any(name.startswith("code/") for name in Archive(path, "TorchScript").names)
    except ModelError:
        return False


def load_torchscript(path: Path, input_shape: tuple[int, ...] | None = None) -> nn.Module:
    """The network in a TorchScript file, in evaluation mode, rewritten as ATen operations, which can be certified.

    The rewritten network must give the same outputs on random images as the script. A script that cannot be rewritten
    (because it branches or loops) is kept: it can be attacked, and the certifier refuses it.
    input_shape: (C, H, W) of the images; if it is not given, a shape on which the script runs is searched for.
    Raises ModelError if the file is damaged, does more than compute with tensors, or does not terminate.
    """
    _require_harmless_code(path)
    unreadable = Archive(path, "TorchScript").unreadable
    try:
        shape = tried_apart(path, input_shape)
        with random_state_kept():
            script = _opened(path)
            rewritten = None if shape is None else _rewritten(script, shape)
    except (ModelError, RuntimeError, ValueError, OSError, EOFError, AttributeError) as error:
        raise unreadable(reason_of(error)) from error
    return script if rewritten is None else rewritten


def reason_of(error: Exception) -> str:
    """One line of an error: the last one for the interpreter of scripts, which states what failed, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "TorchScript interpreter" in lines[0] else lines[0]


def _image_type(script: Any) -> torch.dtype:
    """The type of the weights of a script, which is also that of its images."""
    tensors = (*script.parameters(), *script.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def _require_harmless_code(path: Path) -> None:
    """Raise ModelError if the archive contains code that would run while it is loaded; nothing of it is run here."""
    archive = Archive(path, "TorchScript")
    archive.require_intact()
    for name in archive.names:
        found = HOSTILE_CODE.search(archive.read(name).decode(errors="replace")) if name.endswith(".py") else None
        if found:
            raise archive.unreadable(f"its code in {name} uses {found[0]}, which does more than compute with tensors")


def _opened(path: Path) -> Any:
    """The script, frozen and in evaluation mode; raises ModelError if its network does more than compute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        script: Any = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    for parameter in script.parameters():
        parameter.requires_grad_(False)  # otherwise the script cannot be copied
    _require_allowed(script.inlined_graph)
    return script


def run_script(path: Path, input_shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Run the script in a file on random images; return the shape (C, H, W) on which it ran, or None."""
    return _runs_on(_opened(path), input_shape)


def _runs_on(script: Any, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The given shape (C, H, W) after a trial with it, else a shape that the script accepts, or None."""
    dtype = _image_type(script)
    if shape is not None:
        with torch.no_grad():
            script(torch.rand(2, *shape).to(dtype))
        return shape
    kernels = [p for p in script.parameters() if p.ndim == 4]
    channels = list(dict.fromkeys([*(int(kernel.shape[1]) for kernel in kernels[:1]), 3, 1, 2, 4]))
    for side in (32, 28, 64, 224, 8, *range(1, 65), 96, 128, 160, 192, 256, 299, 384):
        for count in channels:
            try:
                with torch.no_grad():
                    answer = script(torch.rand(2, count, side, side).to(dtype))
            except RuntimeError:
                continue
            if isinstance(answer, torch.Tensor) and answer.ndim == 2 and len(answer) == 2:
                return count, side, side
    return None


def _require_allowed(block: Any) -> None:
    """Raise ModelError for a node that is not a forward computation with tensors, in this block or a nested one."""
    for node in block.nodes():
        kind, inputs = node.kind(), list(node.inputs())
        if kind.startswith("aten::"):
            schema = node.schema().partition("(")[0].removeprefix("aten::").partition(".")
            if not is_allowed(schema[0], schema[2]):
                raise ModelError(f"its network uses {kind}, which is not among the operations that a file may use")
            position = TRAINING.get(schema[0])
            if position is not None and len(inputs) > position and inputs[position].toIValue() is True:
                raise ModelError(
                    f"its {schema[0]} is in training mode; call model.eval() before you trace or export it"
                )
        elif kind.removeprefix("prim::") not in PRIMITIVES:
            raise ModelError(f"its network uses {kind}, which does more than compute with tensors")
        for inner in node.blocks():
            _require_allowed(inner)


def _rewritten(script: Any, input_shape: tuple[int, ...]) -> nn.Module | None:
    """The same function as ATen operations; None if there is no such form or its outputs differ."""
    trained = list(script.parameters())
    try:
        module = _as_aten(torch.jit.freeze(script, optimize_numerics=False).inlined_graph, trained)
    except ModelError as error:
        log.info("the script stays a script: %s", error)
        return None
    images = torch.rand(PROBES, *input_shape, generator=torch.Generator().manual_seed(0)).to(_image_type(script))
    require_moderate(module, images)
    with torch.no_grad():
        for batch in (images, images[:1]):
            expected, found = script(batch.clone()), module(batch.clone())
            if not isinstance(expected, torch.Tensor):
                return None  # refused by `load_model` with the reason
            if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
                log.warning("the script stays a script: rewritten it gives different answers")
                return None
    return module


def _as_aten(graph: Any, trained: list[torch.Tensor]) -> nn.Module:
    """trained: the parameters of the script; its other tensors become buffers."""
    built, values = AtenGraph(), dict[str, Any]()
    _, images, *others = graph.inputs()
    if others:
        raise ModelError("it takes more than the images")
    values[images.debugName()] = built.input("images")
    _add_nodes(built, values, graph, trained)
    (output,) = graph.outputs()
    if values[output.debugName()] is UNKNOWN:
        raise ModelError("the result depends on the list of all sizes, for which there is no ATen operation")
    return built.finish(values[output.debugName()])


def _add_nodes(built: AtenGraph, values: dict[str, Any], block: Any, trained: list[torch.Tensor]) -> None:
    """Add every operation of a block in turn; operations that depend on no tensor are computed at once."""
    for node in block.nodes():
        kind, args = node.kind(), [values[value.debugName()] for value in node.inputs() if value.debugName() in values]
        names = [value.debugName() for value in node.outputs()]
        if kind == "prim::Constant":
            values[names[0]] = _constant(built, node, names[0], trained)
        elif kind in LISTS:
            values[names[0]] = args
        elif kind in CARRIERS:
            values[names[0]] = args[0]
        elif kind in {"prim::ListUnpack", "prim::TupleUnpack"} and args[0] is not UNKNOWN:
            values.update(zip(names, _unpacked(built, args[0], len(names)), strict=True))
        elif kind == "prim::If" and (branch := _branch_that_does_not_raise(node)) is not None:
            _add_nodes(built, values, branch, trained)
            values.update(zip(names, (values[value.debugName()] for value in branch.outputs()), strict=True))
        elif kind.startswith("aten::"):
            values[names[0]] = _call(built, node, args)
        else:
            raise ModelError(f"no ATen operation for {kind}")


def _call(built: AtenGraph, node: Any, args: list[Any]) -> Any:
    """The operation of a node: added to the graph if it depends on the images, else its result."""
    schema = node.schema()
    name, _, overload = schema.partition("(")[0].removeprefix("aten::").partition(".")
    if (name == "size" and len(args) == 1) or any(value is UNKNOWN for value in _flat(args)):
        return UNKNOWN
    if name in {"len", "__getitem__"} and isinstance(args[0], list):
        return len(args[0]) if name == "len" else args[0][args[1]]
    if name == "_convolution" and len(args[3]) == 2 and not args[6]:  # the form recorded by tracing
        name, args = "conv2d", [*args[:6], args[8]]
    if name in STATISTICS:  # freezing shares equal tensors, so a running mean may be the same tensor as a trained bias
        args = [*args[:3], *(_without_gradient(built, value) for value in args[3:5]), *args[5:]]
    operation = aten_operation("sym_size" if name == "size" else name, overload or "default")
    positional, keywords = _by_schema(operation, args)
    if any(isinstance(value, fx.Node) for value in _flat(args)):
        return built.call(operation, positional, keywords)
    return operation(*positional, **keywords)


def _without_gradient(built: AtenGraph, value: Any) -> Any:
    return built.call(torch.ops.aten.detach.default, [value]) if isinstance(value, fx.Node) else value


def _unpacked(built: AtenGraph, values: Any, count: int) -> list[Any]:
    """The members of a list, including lists returned by operations."""
    if isinstance(values, list):
        return values
    return [built.call(ARITHMETIC["getitem"], [values, position]) for position in range(count)]


def _by_schema(operation: Any, args: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments in the form of the operation; the graph of a script lists all by position."""
    parameters = operation._schema.arguments
    positional = [value for value, parameter in zip(args, parameters, strict=True) if not parameter.kwarg_only]
    named = {p.name: value for value, p in zip(args, parameters, strict=True) if p.kwarg_only}
    return positional, {name: value for name, value in named.items() if value is not None}


def _flat(args: Any) -> Iterator[Any]:
    for value in args:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _constant(built: AtenGraph, node: Any, name: str, trained: list[torch.Tensor]) -> Any:
    return _stored(built, node.output().toIValue(), name.removeprefix("self."), trained)


def _stored(built: AtenGraph, value: Any, name: str, trained: list[torch.Tensor]) -> Any:
    """A constant whose tensors, also those in lists (indices), are weights or buffers of the graph."""
    if isinstance(value, torch.Tensor):
        return built.tensor(name, value.detach().clone(), trainable=_is_among(value, trained))
    if isinstance(value, list):
        return [_stored(built, part, f"{name}.{place}", trained) for place, part in enumerate(value)]
    return value


def _is_among(value: torch.Tensor, trained: list[torch.Tensor]) -> bool:
    """Whether it is one of these tensors; freezing keeps one name for equal tensors, so names cannot be compared."""
    return any(value.shape == other.shape and torch.equal(value, other) for other in trained)


def _branch_that_does_not_raise(node: Any) -> Any:
    """An assertion is a branch whose other side raises; it may be omitted, since outputs are compared."""
    branches = list(node.blocks())
    raising = [any(inner.kind() == "prim::RaiseException" for inner in branch.nodes()) for branch in branches]
    return branches[raising.index(False)] if sum(raising) == 1 else None
