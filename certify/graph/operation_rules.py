"""From the captured graph to the network of linear maps and activations: one rule for each ATen operation.

A rule takes a `Call` and returns the node that the operation makes. An operation without a rule, or that its rule does
not cover, is refused by name and place; all refusals of a network are listed at once. Nothing unknown ever counts as 1.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from robustres.certify.graph.capture import BATCH, Captured, device_of, is_random, operation_of, path_of
from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Opaque, Piece, Source
from robustres.certify.graph.tracing import first_line
from robustres.certify.maps.activation import Activation, Parameter, broadcast_size
from robustres.certify.maps.coordinate_maps import Selection
from robustres.certify.maps.linear_map import Identity, LinearMap, Shape
from robustres.certify.maps.nonlinear import Unknown
from robustres.errors import Refusal


class NotCoveredError(Exception):
    """A rule met a case that it does not cover; the message says which."""


def require_fitting(piece: Piece, inputs: Sequence[Shape], shape: Shape) -> None:
    """Refuse a piece that does not take inputs of these shapes to this shape: its rule has a defect.

    An elementwise piece in particular must not be larger than its input, which would repeat values and count once.
    """
    match piece:
        case Source():
            fits = not inputs
        case Linear():
            fits = list(inputs) == [tuple(piece.map.in_shape)] and tuple(piece.map.out_shape) == shape
        case Elementwise():
            parameters = broadcast_size(piece.function.parameters)
            fits = list(inputs) == [shape] and _broadcasts(parameters, shape)
        case Merge(kind="concatenation", axis=int(axis)):
            fits = sum(math.prod(part) for part in inputs) == math.prod(shape) and all(
                len(part) == len(shape) and (*part[:axis], *part[axis + 1 :]) == (*shape[:axis], *shape[axis + 1 :])
                for part in inputs
            )
        case Merge(kind="sum" | "maximum" | "minimum"):
            fits = bool(inputs) and all(part == shape for part in inputs)
        case Opaque():
            fits = len(inputs) == (0 if isinstance(piece, Unknown) else 1) and all(
                piece.out_shape(part) == shape for part in inputs
            )
        case _:
            fits = False
    if not fits:
        raise NotCoveredError(
            f"whose rule made a {type(piece).__name__} from {list(inputs)} to {shape}, which does not fit: please "
            "report this model"
        )


def _broadcasts(parameters: Shape, shape: Shape) -> bool:
    """Whether parameters of this shape apply to a value of that shape without enlarging it."""
    padded = (1,) * (len(shape) - len(parameters)) + parameters
    return len(padded) == len(shape) and all(side in (1, full) for side, full in zip(padded, shape, strict=True))


@dataclass(frozen=True, eq=False)
class Parts:
    """What an operation with several outputs makes (split): one node for each output."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """One operation of the graph with its arguments by their ATen names: nodes, constant tensors or plain values."""

    origin: fx.Node
    arguments: Mapping[str, Any]
    captured: Captured

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def node(self, name: str) -> Node:
        """An argument that depends on the input of the network."""
        value = self.arguments[name]
        if not isinstance(value, Node):
            raise NotCoveredError(f"with an input as its {name}")
        return value

    def constant(self, name: str) -> Any:
        """An argument that does not depend on the input of the network."""
        value = self.arguments.get(name)
        if isinstance(value, Node):
            raise NotCoveredError(f"whose {name} depends on the input")
        return value

    @property
    def only_input(self) -> Node:
        """The one argument that depends on the input of the network."""
        nodes = [value for value in self.arguments.values() if isinstance(value, Node)]
        if len(nodes) != 1:
            raise NotCoveredError(f"with {len(nodes)} arguments that depend on the input")
        return nodes[0]

    @property
    def out_shape(self) -> Shape:
        """Unbatched shape of the operation's output, the first one where it has several."""
        value = self.origin.meta["val"]
        return unbatched(value[0] if isinstance(value, list | tuple) else value)

    def make(self, piece: Piece, *inputs: Node, shape: Shape | None = None) -> Node:
        """A node at this place of the graph; what is not linear sees one number per sample as a vector of length 1.

        Raises NotCoveredError where the piece does not fit the shapes: a defect of the rule, which must not pass.
        """
        wanted = self.out_shape if shape is None else shape
        if isinstance(piece, Linear):
            return self._checked(piece, inputs, wanted)
        vectors = [value if value.shape else self.same(value, (1,)) for value in inputs]
        node = self._checked(piece, tuple(vectors), wanted or (1,))
        return node if wanted else self.same(node, wanted)

    def _checked(self, piece: Piece, inputs: tuple[Node, ...], shape: Shape) -> Node:
        require_fitting(piece, [value.shape for value in inputs], shape)
        return Node(piece, inputs, shape, path_of(self.origin), self.origin)

    def elementwise(self, source: Node, function: Activation) -> Node:
        """The function of every coordinate of `source`, broadcast to the shape of the output first."""
        return self.make(Elementwise(function), self.expanded(source))

    def parameter(self, name: str, default: float | None = None) -> Parameter:
        """A number, or a float64 tensor that broadcasts to one sample of the output; the same for all samples."""
        value = self.constant(name)
        return default if value is None and default is not None else self.per_sample(value)

    def per_sample(self, value: Any) -> Parameter:
        """A constant as a number or as a float64 tensor that broadcasts to one sample of the output."""
        if not isinstance(value, Tensor):
            number = float(value)
            if math.isnan(number):
                raise NotCoveredError("with a constant that is not a number")
            return number
        values = value.detach().to(torch.float64)
        if bool(values.isnan().any()):
            raise NotCoveredError("with a constant that is not a number")
        if values.numel() == 1:
            return float(values)
        if values.ndim == len(self.out_shape) + 1:
            if not bool((values == values[:1]).all()):
                raise NotCoveredError("with a constant that differs between the samples of a batch")
            values = values[0]
        elif values.ndim > len(self.out_shape) + 1:
            raise NotCoveredError("with a constant that adds an axis in front of the batch")
        return values

    def linear(self, source: Node, linear_map: LinearMap, *, shift: float = 0.0) -> Node:
        """The image of `source` under a linear map; `shift` as in `Linear`."""
        return self.make(Linear(linear_map, shift), source, shape=linear_map.out_shape)

    def same(self, source: Node, shape: Shape | None = None, *, shift: float = 0.0) -> Node:
        """The numbers of `source`, shifted by a constant or in another shape."""
        return self.linear(source, Identity(source.shape, self.out_shape if shape is None else shape), shift=shift)

    def size(self, constant: Any) -> float:
        """The l2 norm of a constant, a number or a tensor that broadcasts against one sample of the output."""
        if constant is None:
            return 0.0
        values = torch.as_tensor(constant, dtype=torch.float64)
        copies = BATCH * math.prod(self.out_shape) / max(1, values.numel())
        return float(values.abs().square().sum().sqrt()) * math.sqrt(max(1.0, copies))

    def expanded(self, source: Node) -> Node:
        """`source` broadcast to the shape of the output."""
        if source.shape == self.out_shape:
            return source
        if len(source.shape) != len(self.out_shape):
            raise NotCoveredError("that lays the batch beside another axis")
        index = torch.arange(math.prod(source.shape), device=device_of(self.captured.module)).reshape(source.shape)
        return self.linear(source, Selection(index.expand(self.out_shape).flatten(), source.shape, self.out_shape))


# What stands in place of a rule, by operation: why there is no bound, and what to do.
STATISTICS = (
    "which divides by the deviation of its own input, so that it has no global bound "
    "(batch normalisation in evaluation mode has one)"
)
PRODUCT = "of two values that both depend on the input, which has no global bound (attention is such a product)"
REASONS: dict[str, str] = {
    **dict.fromkeys(("group_norm", "layer_norm", "instance_norm", "rms_norm", "local_response_norm"), STATISTICS),
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "_fused_rms_norm"), STATISTICS),
    **dict.fromkeys(("bmm", "baddbmm", "einsum", "scaled_dot_product_attention"), PRODUCT),
    **dict.fromkeys(("log_softmax", "_log_softmax"), "(leave it out: the answer with the largest value is the same)"),
    **dict.fromkeys(
        ("pow", "exp", "square"), "which is the steeper the larger its input, so that it has no global bound"
    ),
    **dict.fromkeys(("sqrt", "rsqrt", "log", "reciprocal"), "which has no bound near 0"),
    **dict.fromkeys(("round", "floor", "ceil", "sign", "argmax", "argsort"), "which jumps"),
}

Rule = Callable[[Call], "Node | Parts"]
RULES: dict[str, Rule] = {}


def rule(*operations: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operations, named with or without their overload: "relu", "add.Tensor"."""

    def register(function: Rule) -> Rule:
        for operation in operations:
            RULES[operation] = function
        return function

    return register


def unbatched(value: Tensor) -> Shape:
    """Shape of one sample; the first axis must be the batch."""
    if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != BATCH:
        raise NotCoveredError("that does not keep the batch as the first axis")
    return tuple(int(side) for side in value.shape[1:])


def build_network(captured: Captured) -> tuple[Node | None, tuple[Refusal, ...]]:
    """The output node of the network, or None and everything that was refused."""
    source = captured.source
    values: dict[fx.Node, Any] = {**captured.constants}
    values[source] = Node(Source(), (), unbatched(source.meta["val"]), "", source)
    refused: dict[Refusal, None] = {}
    for origin in captured.nodes:
        if any(values[parent] is None for parent in origin.all_input_nodes if parent not in captured.constants):
            values[origin] = None  # hangs on something refused whose output has no known form
            if origin.target is not operator.getitem and _rule_of(origin) is None:
                refused[_refusal(origin, NotCoveredError(_reason(origin)))] = None
            continue
        try:
            values[origin] = _applied(origin, values, captured)
        except NotCoveredError as reason:
            refused[_refusal(origin, reason)] = None
            values[origin] = _unknown(origin)
    output = values.get(captured.output)
    if isinstance(output, Node) and not refused:
        return output, ()
    return None, tuple(refused) or (Refusal("", "an answer that does not depend on the input"),)


def _applied(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Any:
    """What the operation makes of values that are known: a node, several, or a constant where the value is empty."""
    value = origin.meta.get("val")
    if isinstance(value, Tensor) and not value.numel():
        return torch.zeros(tuple(value.shape), dtype=value.dtype, device=device_of(captured.module))
    for part in value if isinstance(value, list | tuple) else [value]:
        if isinstance(part, Tensor) and part.is_floating_point() and part.dtype != torch.float64:
            raise NotCoveredError(f"in {part.dtype}, which rounds")
    try:
        made = _made(origin, values, captured)
    except NotCoveredError:
        raise
    except Exception as error:  # of torch's or Python's own, deep inside a rule: a refusal, never a bound
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise NotCoveredError(f"in a form that its rule does not cover ({reason})") from error
    if isinstance(made, Node) and made.shape != unbatched(origin.meta["val"]):
        raise NotCoveredError(f"whose rule gave the shape {made.shape}: please report this model")
    return made


def _made(origin: fx.Node, values: Mapping[fx.Node, Any], captured: Captured) -> Node | Parts:
    if origin.target is operator.getitem:
        of, place = origin.args
        parts = values[of] if isinstance(of, fx.Node) else None
        if not isinstance(parts, Parts) or not isinstance(place, int) or place >= len(parts.nodes):
            raise NotCoveredError("of an output that is not covered")
        return replace(parts.nodes[place], origin=origin)
    found = _rule_of(origin)
    if found is None or not isinstance(origin.target, torch._ops.OpOverload):
        raise NotCoveredError(_reason(origin))
    args, kwargs = fx.node.map_arg((origin.args, origin.kwargs), lambda argument: values[argument])
    schema = origin.target._schema.arguments
    arguments = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    arguments.update(zip((argument.name for argument in schema), args, strict=False))
    arguments.update(kwargs)
    return found(Call(origin, arguments, captured))


def _rule_of(origin: fx.Node) -> Rule | None:
    if not isinstance(origin.target, torch._ops.OpOverload) or is_random(origin):
        return None
    name = str(origin.target).removeprefix("aten.")
    return RULES.get(name) or RULES.get(name.rsplit(".", 1)[0])


def _reason(origin: fx.Node) -> str:
    return REASONS.get(str(origin.target).removeprefix("aten.").split(".")[0], "")


def _refusal(origin: fx.Node, reason: NotCoveredError) -> Refusal:
    return Refusal(path_of(origin), f"{operation_of(origin)} {reason}".strip())


def _unknown(origin: fx.Node) -> Node | Parts | None:
    """Something of the right shape in place of a refused operation, so that everything after it is looked at too."""
    value: Any = origin.meta.get("val")
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(part, Tensor) and part.ndim and part.shape[0] == BATCH for part in parts):
        return None
    shapes = [tuple(part.shape[1:]) for part in parts]
    nodes = tuple(Node(Unknown(shape), (), shape, path_of(origin), origin) for shape in shapes)
    return nodes[0] if isinstance(value, Tensor) else Parts(nodes)
