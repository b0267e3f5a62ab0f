"""TorchScript files, which a language of their own describes; it is read before it runs, and rewritten in ATen.

`torch.jit.load` interprets TorchScript, never Python; but TorchScript has operations on files and may run some of its
code while it is loaded. Archives that do so are refused: by their text before torch sees it, and by the graph of the
network, in which every call is resolved, before that runs.
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
from robustres.models.sources.archive import Archive
from robustres.models.sources.aten_graph import ARITHMETIC, AtenGraph, aten_operation

log = logging.getLogger(__name__)

# In the archive's code: what runs while it is loaded, and operations on files.
HOSTILE_CODE = re.compile(r"\b(?:__setstate__|save|from_file)\b")
# In the network's graph after all calls were resolved: operations on files, and calls of what cannot be looked into.
HOSTILE_NODES = re.compile(r"aten::(?:save|from_file)|prim::(?:Call|Interface|fork|Python|awaitable).*")
PROBES = 3
TOLERANCE = 1e-5
# Operations that carry a number from one type to another, or lists that are the same thing to Python.
CARRIERS = frozenset({"prim::NumToTensor", "aten::Int", "aten::IntImplicit", "aten::ScalarImplicit"})
# What depends on the list of all sizes of a tensor, which has no form in ATen; assertions ask for it.
UNKNOWN = object()
LISTS = frozenset({"prim::ListConstruct", "prim::TupleConstruct"})


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive with TorchScript's code in it; opening it this far executes nothing."""
    try:
        return any(name.startswith("code/") for name in Archive(path, "TorchScript").names)
    except ModelError:
        return False


def load_torchscript(path: Path, input_shape: tuple[int, ...] | None = None) -> nn.Module:
    """The network in a TorchScript file, in evaluation mode.

    input_shape: (C, H, W). Where it is given, the network is rewritten as ATen operations, which can be certified, and
        the rewritten one must answer random images as the script does. A script that cannot be rewritten (it branches
        or loops) stays as it is: it can be attacked, and the certifier refuses it.
    Raises ModelError where the file is damaged or does more than compute with tensors.
    """
    archive = Archive(path, "TorchScript")
    for name in archive.names:
        found = HOSTILE_CODE.search(archive.read(name).decode(errors="replace")) if name.endswith(".py") else None
        if found:
            raise archive.unreadable(f"its code in {name} uses {found[0]}, which does more than compute with tensors")
    try:
        with warnings.catch_warnings(), random_state_kept():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            script: Any = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
            for parameter in script.parameters():
                parameter.requires_grad_(False)  # or copies of the script could not be made
            _require_harmless(script.inlined_graph)
            rewritten = None if input_shape is None else _rewritten(script, input_shape)
    except (ModelError, RuntimeError, ValueError, OSError, EOFError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise archive.unreadable(reason) from error
    return script if rewritten is None else rewritten


def _require_harmless(block: Any) -> None:
    """ModelError for a node that can do more than compute, in this block or in one inside it."""
    for node in block.nodes():
        if HOSTILE_NODES.fullmatch(node.kind()):
            raise ModelError(f"its network uses {node.kind()}, which can do more than compute with tensors")
        for inner in node.blocks():
            _require_harmless(inner)


def _rewritten(script: Any, input_shape: tuple[int, ...]) -> nn.Module | None:
    """The same function as ATen operations; None where there is no such form or it answers otherwise."""
    try:
        module = _as_aten(torch.jit.freeze(script, optimize_numerics=False).inlined_graph)
    except ModelError as error:
        log.info("the script stays a script: %s", error)
        return None
    images = torch.rand(PROBES, *input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for batch in (images, images[:1]):
            expected, found = script(batch), module(batch)
            if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
                log.warning("the script stays a script: rewritten it answers otherwise")
                return None
    return module


def _as_aten(graph: Any) -> nn.Module:
    built, values = AtenGraph(), dict[str, Any]()
    _, images = graph.inputs()
    values[images.debugName()] = built.input("images")
    _add_nodes(built, values, graph)
    (output,) = graph.outputs()
    if values[output.debugName()] is UNKNOWN:
        raise ModelError("the result depends on the list of all sizes, for which there is no ATen operation")
    return built.finish(values[output.debugName()])


def _add_nodes(built: AtenGraph, values: dict[str, Any], block: Any) -> None:
    """Every operation of a block in turn; what depends on no tensor is computed at once."""
    for node in block.nodes():
        kind, args = node.kind(), [values[value.debugName()] for value in node.inputs() if value.debugName() in values]
        names = [value.debugName() for value in node.outputs()]
        if kind == "prim::Constant":
            values[names[0]] = _constant(built, node, names[0])
        elif kind in LISTS:
            values[names[0]] = args
        elif kind in CARRIERS:
            values[names[0]] = args[0]
        elif kind in {"prim::ListUnpack", "prim::TupleUnpack"} and args[0] is not UNKNOWN:
            values.update(zip(names, _unpacked(built, args[0], len(names)), strict=True))
        elif kind == "prim::If" and (branch := _branch_that_does_not_raise(node)) is not None:
            _add_nodes(built, values, branch)
            values.update(zip(names, (values[value.debugName()] for value in branch.outputs()), strict=True))
        elif kind.startswith("aten::"):
            values[names[0]] = _call(built, node, args)
        else:
            raise ModelError(f"no ATen operation for {kind}")


def _call(built: AtenGraph, node: Any, args: list[Any]) -> Any:
    """A node's operation: in the graph where it depends on the images, else its result."""
    schema = node.schema()
    name, _, overload = schema.partition("(")[0].removeprefix("aten::").partition(".")
    if (name == "size" and len(args) == 1) or any(value is UNKNOWN for value in _flat(args)):
        return UNKNOWN
    if name in {"len", "__getitem__"} and isinstance(args[0], list):
        return len(args[0]) if name == "len" else args[0][args[1]]
    if name == "_convolution" and len(args[3]) == 2 and not args[6]:  # what tracing records for every convolution
        name, args = "conv2d", [*args[:6], args[8]]
    operation = aten_operation("sym_size" if name == "size" else name, overload or "default")
    positional, keywords = _by_schema(operation, args)
    if any(isinstance(value, fx.Node) for value in _flat(args)):
        return built.call(operation, positional, keywords)
    return operation(*positional, **keywords)


def _unpacked(built: AtenGraph, values: Any, count: int) -> list[Any]:
    """The members of a list, also of one that an operation gives."""
    if isinstance(values, list):
        return values
    return [built.call(ARITHMETIC["getitem"], [values, position]) for position in range(count)]


def _by_schema(operation: Any, args: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments as the operation takes them: a script's graph lists all by position, also those given by name only."""
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


def _constant(built: AtenGraph, node: Any, name: str) -> Any:
    value = node.output().toIValue()
    if isinstance(value, torch.Tensor):
        return built.tensor(name.removeprefix("self."), value.detach().clone(), trainable=value.ndim > 0)
    return value


def _branch_that_does_not_raise(node: Any) -> Any:
    """An assertion is a branch whose other side raises; it may be left out, since answers are compared."""
    branches = list(node.blocks())
    raising = [any(inner.kind() == "prim::RaiseException" for inner in branch.nodes()) for branch in branches]
    return branches[raising.index(False)] if sum(raising) == 1 else None
