"""Capture of a model as a graph of ATen operations, which is compared with the model before it is used."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from operator import index
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from robustres.certify.graph.definitions import define
from robustres.certify.graph.float64_copy import evaluation_copy, float64_copy
from robustres.certify.graph.own_type import as_written, own_type
from robustres.certify.graph.single_function import (
    AGREEMENT,
    ChangingAnswerError,
    answer_of,
    close,
    require_same_in_every_use,
    require_same_in_own_type,
)
from robustres.certify.graph.statements import HasNoCertificate
from robustres.certify.graph.tracing import STATED, exported, first_line
from robustres.certify.maps.linear_map import Shape
from robustres.errors import InputError, ModelError, Refusal, RobustresError, UnsupportedOperationError
from robustres.guard import random_state_kept
from robustres.precision import floating_types

# Samples in the captured batch; rules check against it that no operation mixes samples.
BATCH = 3
# Operations whose second argument is the shape of the whole batch. A view may encounter other strides than captured.
RESHAPES = frozenset({torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default})
EXPAND = torch.ops.aten.expand.default
COPY = torch.ops.aten.copy.default  # for in-place copies; torch has no derivative of it


@dataclass(frozen=True, eq=False)
class Captured:
    """A model's graph in float64 and evaluation mode.

    on_unit_domain: the inputs are restricted to images in [0, 1]^n. near_an_image: only bounds near one image are asked
    for, where products of two values and functions without a largest slope have them, too.
    module: the float64 copy of the model. own: the type of the model itself. constants: the value of
    every node that does not depend on the input.
    rebatches: whether it runs with other batch sizes. moves_batch: whether some value has another first axis than the
        batch.
    """

    module: nn.Module
    own: torch.dtype
    nodes: tuple[fx.Node, ...]
    source: fx.Node
    output: fx.Node
    constants: Mapping[fx.Node, Any]
    computed: tuple[fx.Node, ...]
    rebatches: bool = False
    moves_batch: bool = False
    on_unit_domain: bool = False
    near_an_image: bool = False

    @property
    def multiplies(self) -> bool:
        """Whether two values may be multiplied: no product has a bound for all inputs."""
        return self.on_unit_domain or self.near_an_image

    def answer(self, x: Tensor) -> Tensor:
        """The output of the module itself for x (N, *shape) in float64."""
        return as_written(self.module, self.own)(x)

    @property
    def defined(self) -> list[str]:
        """The operations in whose place their definitions stand, which round otherwise."""
        return sorted({str(node.meta["defined"]) for node in self.nodes if "defined" in node.meta})

    @property
    def resized(self) -> list[str]:
        """The operations whose weights torch computes from positions, in the type of the values: in float32, those of
        an image of n pixels are off by some n units, zeros among them."""
        names = {str(node.target) for node in self.nodes}
        return sorted(name for name in names if "upsample" in name and ("linear" in name or "cubic" in name))

    def run(
        self,
        known: Mapping[fx.Node, Tensor],
        wanted: fx.Node,
        *,
        observe: Callable[[fx.Node, Any], None] | None = None,
    ) -> Tensor:
        """The value of `wanted`, given the values of nodes that separate it from the input; differentiable.

        A batch of BATCH samples is always possible, other sizes if `rebatches`.
        observe: called with every computed node and its value; values are released after their last use.
        """
        values: dict[fx.Node, Any] = {**self.constants, **known}
        batch = len(next(iter(known.values())))
        needed = self._needed(wanted, values)
        pending = Counter(parent for node in needed for parent in node.all_input_nodes)
        for node in self.nodes:
            if node not in needed:
                continue
            values[node] = call(node, values, self.module, self.own, batch=batch)
            if observe is not None:
                observe(node, values[node])
            for parent in node.all_input_nodes:
                pending[parent] -= 1
                if pending[parent] == 0 and parent is not wanted:
                    del values[parent]
        result: Tensor = values[wanted]
        return result

    def run_all(
        self,
        x: Tensor,
        start: fx.Node,
        wanted: fx.Node,
        *,
        batch_size: int = BATCH,
        observe: Callable[[slice, fx.Node, Any], None] | None = None,
    ) -> Tensor:
        """The value of `wanted`, given that of `start` for any number of samples, batch by batch.

        observe: called with samples, node and value, but not for constants that are made from the input's type.
        """
        size, rows = batch_size if self.rebatches else BATCH, []
        for first in range(0, len(x), size):
            batch = x[first : first + size]
            span, count = slice(first, first + len(batch)), len(batch)
            if count < BATCH and not self.rebatches:
                batch = torch.cat([batch, batch[-1:].expand(BATCH - count, *batch.shape[1:])])

            def tell(node: fx.Node, value: Any, span: slice = span, count: int = count, rows: int = len(batch)) -> None:
                if observe is not None and isinstance(value, Tensor) and value.ndim and len(value) == rows:
                    observe(span, node, value[:count])

            rows.append(self.run({start: batch}, wanted, observe=tell)[:count])
        return torch.cat(rows)

    def _needed(self, wanted: fx.Node, values: Mapping[fx.Node, Any]) -> set[fx.Node]:
        needed: set[fx.Node] = set()
        stack = [wanted]
        while stack:
            node = stack.pop()
            if node not in values and node not in needed:
                needed.add(node)
                stack.extend(node.all_input_nodes)
        return needed


def call(
    node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module, own: torch.dtype, *, batch: int = BATCH
) -> Any:
    """The value of one operation; the batch size captured in a shape is replaced by `batch`.

    module, own: as in `Captured`, for modules that state their bound.
    """
    arguments: Any = fx.node.map_arg((node.args, node.kwargs), lambda argument: values[argument])
    args, kwargs = arguments
    if node.target is STATED:
        return as_written(module.get_submodule(str(args[1])), own)(args[0])
    if node.target in RESHAPES or node.target is EXPAND:
        shape = [*(batch if side == BATCH else side for side in args[1][:1]), *args[1][1:]]
        return args[0].reshape(shape) if node.target in RESHAPES else args[0].expand(shape)
    if node.target is COPY:
        return args[1].to(args[0]).expand_as(args[0]).clone()
    assert callable(node.target), node.target
    return node.target(*args, **kwargs)


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's tensors, the CPU if it has none; ModelError if it is no module."""
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise ModelError(f"a model must be an nn.Module, got {kind}; of what load_model returns, pass the .module")
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def require_shape(given: Any) -> Shape:
    """The shape of one input; InputError if it is not a sequence of positive integers."""
    try:
        shape = tuple(index(side) for side in given)
    except TypeError:
        shape = (0,)
    if min(shape, default=1) < 1:
        raise InputError(f"input_shape must be the sides of one input, such as (3, 32, 32), got {given!r}")
    return shape


def capture(model: nn.Module, input_shape: Shape, *, opened: bool = False) -> Captured:
    """The graph of the model on a batch of inputs of `input_shape`, checked against the model.

    opened: modules that state their own bound are captured operation by operation instead of as one call.

    Raises: ModelError if the model does not run on such inputs, mixes the samples of a batch, or is not a function;
    UnsupportedOperationError if it cannot be written as a graph (control flow that depends on the data).
    """
    if refused := [
        Refusal(path, m.no_certificate) for path, m in model.named_modules() if isinstance(m, HasNoCertificate)
    ]:
        raise UnsupportedOperationError(refused)
    module, own = float64_copy(model), own_type(model)
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(BATCH, *input_shape, dtype=torch.float64, generator=generator).to(device_of(module))
    with random_state_kept(), torch.no_grad():
        try:
            answer = answer_of(module, own, example)
        except ChangingAnswerError:
            _refuse_random(module, own, example)
            raise
        require_same_in_every_use(float64_copy(model), own, example, answer)
        if {*floating_types(model)} - {torch.float64}:  # without weights it has no type
            require_same_in_own_type(evaluation_copy(model), example, answer)
        captured = _traced(module, own, example, answer, opened=opened)
        if captured.moves_batch:
            with suppress(RobustresError):
                vectorised = _traced(module, own, example, answer, opened=opened, by_sample=True)
                captured = captured if vectorised.moves_batch else vectorised
        return captured


def _traced(
    module: nn.Module, own: torch.dtype, example: Tensor, answer: Tensor, *, opened: bool, by_sample: bool = False
) -> Captured:
    captured = _folded(module, own, exported(module, example, own, opened=opened, by_sample=by_sample))
    moved: set[fx.Node] = set()
    _compare(captured, example, answer, moved)
    rebatches = _rebatches(captured, example, answer, moved)
    return replace(captured, rebatches=rebatches, moves_batch=bool(moved))


def _refuse_random(module: nn.Module, own: torch.dtype, example: Tensor) -> None:
    """Refuse, by name, modules that draw random numbers in evaluation mode, if they are recognised."""
    _refuse_drawn(exported(module, example, own).graph.nodes, "which draws random numbers in evaluation mode too")


def _refuse_drawn(nodes: Iterable[fx.Node], what: str) -> None:
    """Refuse the operations among them that draw random numbers, if there are any."""
    if random := [node for node in nodes if is_random(node)]:
        raise UnsupportedOperationError([Refusal(path_of(node), f"{operation_of(node)} {what}") for node in random])


def _folded(module: nn.Module, own: torch.dtype, program: torch.export.ExportedProgram) -> Captured:
    """The exported program with everything that does not depend on the input evaluated."""
    signature = program.graph_signature
    if any(spec.kind != OutputKind.USER_OUTPUT for spec in signature.output_specs):
        raise ModelError("the model changes its own buffers when it answers, so it is not a function of its input")
    lifted: dict[str, Any] = {}
    source = None
    for spec in signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            source = spec.arg.name
        elif spec.target is not None:
            state = program.state_dict if spec.target in program.state_dict else program.constants
            lifted[spec.arg.name] = state[spec.target]
    define(program.graph_module, source)
    _repetitions_removed(program.graph)
    nodes = tuple(program.graph.nodes)
    constants: dict[fx.Node, Any] = {}
    operations = []
    for node in nodes:
        if node.op == "placeholder":
            if node.name != source:
                constants[node] = lifted[node.name]
        elif node.op == "get_attr":
            constants[node] = getattr(program.graph_module, str(node.target))
        elif node.op == "call_function":
            if all(parent in constants for parent in node.all_input_nodes) and not is_random(node):
                constants[node] = call(node, constants, module, own)
            else:
                operations.append(node)
    answers = nodes[-1].args[0]
    assert isinstance(answers, tuple)
    operations = _used(operations, answers[0])
    computed = tuple(node for node in constants if node.op == "call_function")
    origin = next(node for node in nodes if node.name == source)
    return Captured(module, own, tuple(operations), origin, answers[0], constants, computed)


def _used(operations: list[fx.Node], answer: fx.Node) -> list[fx.Node]:
    """The operations on which the output depends, without the checks of types and sizes that torch adds."""
    used = {answer}
    for node in reversed(operations):
        if node in used:
            used.update(node.all_input_nodes)
    return [node for node in operations if node in used]


def _repetitions_removed(graph: fx.Graph) -> None:
    """Compute an operation that is repeated with the same arguments only once: it is one value of the network."""
    first: dict[tuple[Any, str], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or is_random(node):
            continue
        known = first.setdefault((node.target, f"{node.args!r} {node.kwargs!r}"), node)
        if known is not node:
            node.replace_all_uses_with(known)
            graph.erase_node(node)


def is_random(node: fx.Node) -> bool:
    """Whether the operation draws random numbers."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


@contextmanager
def refusing_what_fails(doing: str) -> Iterator[None]:
    """Turn errors of torch or Python into a refusal that names the current activity."""
    try:
        yield
    except (RobustresError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = f"a network that fails while robustres is {doing} ({type(error).__name__}: {first_line(error)})"
        raise UnsupportedOperationError([Refusal("", what)]) from error


def path_of(node: fx.Node) -> str:
    """Dotted name of the module that contains an operation."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed([path for path, _ in stack.values()]), "")
    return path.removeprefix("model").removeprefix(".")


def operation_of(node: fx.Node) -> str:
    """Readable name of an operation: `aten.softmax`."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket).replace("::", ".")
    return str(getattr(node.target, "__name__", node.target))


def _compare(captured: Captured, example: Tensor, answer: Tensor, moved: set[fx.Node]) -> None:
    """Refuse a graph whose output differs from that of the model. moved: as in `_watching`."""
    for sample in (example, example.flip(0) - 0.5):
        expected = answer if sample is example else captured.answer(sample.clone())
        found = captured.run({captured.source: sample}, captured.output, observe=_watching(moved, len(sample)))
        if not close(found, expected, AGREEMENT):
            _refuse_drawn(captured.nodes, "which draws random numbers, other ones than the model does")
            raise ModelError("the captured graph does not give the same output as the model; please report this model")


def _rebatches(captured: Captured, example: Tensor, answer: Tensor, moved: set[fx.Node]) -> bool:
    """Whether the graph runs with smaller and larger batches. moved: as in `_watching`.

    Constants and slices may depend on the captured size.
    """
    alike = True
    for rows in (torch.arange(2), torch.arange(2 * BATCH + 1) % BATCH):
        watch = _watching(moved, len(rows))
        try:
            found = captured.run({captured.source: example[rows]}, captured.output, observe=watch)
        except Exception:  # any error of torch, for example for indices that exist only in the captured batch
            alike = False
        else:
            alike = alike and close(found, answer[rows], AGREEMENT)
    return alike


def _watching(moved: set[fx.Node], count: int) -> Callable[[fx.Node, Any], None]:
    """An observer of a batch of `count` samples that adds the nodes whose values have another first axis to `moved`.

    Of several results at once each one that is read is a node of its own.
    """

    def observe(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and (not value.ndim or len(value) != count):
            moved.add(node)

    return observe
