"""Export of a module as a program of ATen operations, by `torch.export`, or with the help of `torch.fx`.

`torch.export` treats the values of weights as unknown, so it refuses a module whose Python code depends on them:
`if sigma > 1`, `float(self.scale)`. Such a module is first traced by `torch.fx` with its current weights, which leaves
plain operations on the input, and these are exported. For a certificate, weights are constants; inputs never are. If
that fails too (Python code that checks whether it was given a tensor), the operations that the module runs are
recorded; this stops at any access to the value of an input.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from io import StringIO
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental import proxy_tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustres.certify.graph.own_type import as_written
from robustres.certify.graph.statements import HasLipschitzBound
from robustres.certify.maps.linear_map import Shape
from robustres.errors import ModelError, Refusal, UnsupportedOperationError

# A module that states its own bound is captured as one call of this operation, of which only the shape is known.
_LIBRARY = torch.library.Library("robustres", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("stated(Tensor x, str path, int[] shape) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.impl("stated", lambda x, path, shape: x.new_empty(shape), "Meta")  # type: ignore[no-untyped-call]
STATED = torch.ops.robustres.stated.default


def exported(
    module: nn.Module, example: Tensor, own: torch.dtype, *, opened: bool = False, by_sample: bool = False
) -> torch.export.ExportedProgram:
    """The module on a batch like `example`, without in-place changes; modules that state a bound become single calls.

    own: the type in which the module was written, see `as_written`.
    opened: modules that state a bound are followed into their operations, too.
    by_sample: trace it on one sample and vectorise the result, so that the batch is the first axis of every value.
    Raises UnsupportedOperationError if neither way gives a graph.
    """
    stated = {} if opened else outermost_stated(module)
    shapes: dict[tuple[str, Shape], list[int]] = {}
    hooks = [child.register_forward_hook(_shape_recorder(path, shapes)) for path, child in stated.items()]
    try:
        as_written(module, own)(example.clone())
    finally:
        for hook in hooks:
            hook.remove()
    try:
        for path, child in stated.items():
            child.forward = _stated_forward(path, shapes)
        if not by_sample:
            return _by_export_or_fx(_Root(module), example, own, stated=tuple(stated.values()))
        with _only_what_vmap_knows():
            return _by_export_or_fx(_BySample(module), example, own, stated=tuple(stated.values()))
    finally:
        for child in stated.values():
            child.__dict__.pop("forward", None)


def _by_export_or_fx(
    root: nn.Module, example: Tensor, own: torch.dtype, *, stated: tuple[nn.Module, ...]
) -> torch.export.ExportedProgram:
    # Both raise their own errors and those of the traced code.
    with _without_dumps():
        try:
            return _exported(root, example, own)
        except Exception as error:
            reason = error
        try:
            tracer = _KnownWeights(stated)
            return _exported(fx.GraphModule(root, tracer.trace(root)), example, own)
        except Exception as error:
            second = error
        try:
            return _exported(_recorded(as_written(root, own), example), example, own)
        except Exception:
            both = f"torch.export: {first_line(reason)}; torch.fx: {first_line(second)}"
            values = "data-dependent" in str(reason)  # the wording of torch.export
            what = "Python that looks at the values of the input (if, float(), .item()) and" if values else "Python"
            raise UnsupportedOperationError([Refusal("", f"{what} that cannot be a graph ({both})")]) from reason


def _recorded(root: Callable[[Tensor], Tensor], example: Tensor) -> fx.GraphModule:
    """The operations that the module runs on the example; values independent of it are constants up to this size."""
    with mock.patch.object(proxy_tensor, "CONSTANT_NUMEL_LIMIT", 4096), _without_views_of_other_libraries():
        graph: fx.GraphModule = proxy_tensor.make_fx(root)(example)
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.index.Tensor):
        node.args = (node.args[0], [place for mask in node.args[1] for place in _places(graph, mask)])
    graph.recompile()
    return graph


def _places(graph: fx.GraphModule, index: fx.Node | None) -> list[fx.Node | None]:
    """A constant mask as the indices where it is true, one tensor per axis; other indices as they are."""
    made = index
    while made is not None and made.target in (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.clone.default):
        made = made.all_input_nodes[0]
    mask = getattr(graph, str(made.target)) if made is not None and made.op == "get_attr" else None
    if made is None or mask is None or mask.dtype != torch.bool:
        return [index]
    names = [f"_places_{made.target}_{axis}" for axis in range(mask.ndim)]
    for name, places in zip(names, mask.nonzero().unbind(1), strict=True):
        graph.register_buffer(name, places)
    with graph.graph.inserting_after(made):
        return [graph.graph.get_attr(name) for name in names]


@contextmanager
def _without_views_of_other_libraries() -> Iterator[None]:
    """Keep the module from reading values through NumPy and the like, which leaves no operation to record."""

    def refuse(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("values of tensors are read by another library than torch")

    with ExitStack() as stack:
        for name in ("numpy", "__array__", "__dlpack__"):
            stack.enter_context(mock.patch.object(Tensor, name, refuse))
        yield


def _exported(root: nn.Module, example: Tensor, own: torch.dtype) -> torch.export.ExportedProgram:
    root.forward = as_written(root.forward, own)
    try:
        program: torch.export.ExportedProgram = torch.export.export(root, (example,), strict=False)
    finally:
        del root.forward
    if not all(_changes_nothing(node) for node in program.graph.nodes):
        program = program.run_decompositions({})
    for node in program.graph.nodes:
        shape = getattr(node.meta.get("val"), "shape", ())
        if any(isinstance(side, torch.SymInt) for side in shape):
            raise ModelError(f"the shape of {node.name} depends on values")
    return program


def _changes_nothing(node: fx.Node) -> bool:
    """Whether the node is an input or output, or an operation of torch that leaves its arguments as they are."""
    if node.op != "call_function":
        return True
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable


class _KnownWeights(fx.Tracer):
    """Tracer of the operations on the input, in which weights and buffers keep their values."""

    def __init__(self, stated: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self._stated = stated

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it is one of torch's own modules or one that states its bound."""
        return m in self._stated or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """The attribute itself, where torch's tracer would use a proxy for a parameter."""
        return attr_val


@contextmanager
def _without_dumps() -> Iterator[None]:
    """Suppress the graphs that torch logs and prints for code that it cannot trace; the error is sufficient."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(level)


def outermost_stated(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that state their own bound and are not part of another such module."""
    found: dict[str, nn.Module] = {}
    child: nn.Module
    for path, child in module.named_modules():
        inside = any(path.startswith(other + ".") or other == "" for other in found)
        if not inside and isinstance(child, HasLipschitzBound):
            found[path] = child
    return found


def _shape_recorder(path: str, shapes: dict[tuple[str, Shape], list[int]]) -> Callable[..., None]:
    def record(child: nn.Module, args: tuple[Any, ...], answer: Any) -> None:
        if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(answer, Tensor):
            raise ModelError(f"{path or 'the network'} states its own bound, so it must map one tensor to one tensor")
        shapes[path, tuple(args[0].shape)] = list(answer.shape)

    return record


def _stated_forward(path: str, shapes: dict[tuple[str, Shape], list[int]]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        answer: Tensor = STATED(x, path, shapes[path, tuple(x.shape)])
        return answer

    return forward


class _Root(nn.Module):
    """Wrapper that allows the network itself to state its own bound, and to overwrite its input."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.model = module

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.model(x.clone())
        return answer


class _BySample(_Root):
    """The network on every sample as a batch of its own."""

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = torch.vmap(lambda sample: self.model(sample.unsqueeze(0)).squeeze(0))(x.clone())
        return answer


@contextmanager
def _only_what_vmap_knows() -> Iterator[None]:
    """Keep torch from the kernels of attention and of whole layers, which have no rule for a batch of samples, and from
    running one sample after another where there is none.
    """
    functorch: Any = torch._C._functorch
    whole_layers: Any = torch.backends.mha
    loops, fast = functorch._is_vmap_fallback_enabled(), whole_layers.get_fastpath_enabled()
    functorch._set_vmap_fallback_enabled(False)
    whole_layers.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        functorch._set_vmap_fallback_enabled(loops)
        whole_layers.set_fastpath_enabled(fast)


def first_line(error: BaseException) -> str:
    """The first line of the text of an error, truncated."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
