"""One operation of the captured graph with its arguments by name, and the nodes that its rule creates."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from robustres.certify.graph.capture import BATCH, Captured, device_of, path_of
from robustres.certify.graph.network import Elementwise, Linear, Merge, Node, Opaque, Piece, Product, Source
from robustres.certify.maps.activation import Activation, Parameter, broadcast_size
from robustres.certify.maps.coordinate_maps import rearranged
from robustres.certify.maps.linear_map import Identity, LinearMap, Shape


class NotCoveredError(Exception):
    """A rule does not cover a case, which the message names. at: another operation to which the message refers."""

    at: fx.Node | None = None


@dataclass(frozen=True, eq=False)
class Deferred:
    """The value of an operation that has no bound by itself but may be part of an activation that has one."""

    reason: NotCoveredError


@dataclass(frozen=True, eq=False)
class Parts:
    """The result of an operation with several outputs (split): one node per output."""

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
    def name(self) -> str:
        """The ATen name of the operation without its overload."""
        return name_of(self.origin)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return device_of(self.captured.module)

    def states(self) -> tuple[Node, ...]:
        """All arguments that depend on the input of the network, including those in lists, each once."""
        leaves = tree_leaves(dict(self.arguments), is_leaf=lambda value: isinstance(value, Node))
        return tuple(dict.fromkeys(value for value in leaves if isinstance(value, Node)))

    def evaluate(self, values: Mapping[Node, Tensor]) -> Any:
        """The result of the operation for values (BATCH, *shape) of its states."""

        def known(argument: Any) -> Any:
            return values[argument] if isinstance(argument, Node) else argument

        arguments = tree_map(known, dict(self.arguments), is_leaf=lambda value: isinstance(value, Node))
        assert callable(self.origin.target)
        return self.origin.target(**arguments)

    @property
    def out_shape(self) -> Shape:
        """Unbatched shape of the operation's output (the first one if there are several)."""
        value = self.origin.meta["val"]
        return unbatched(value[0] if isinstance(value, list | tuple) else value)

    def make(self, piece: Piece, *inputs: Node, shape: Shape | None = None) -> Node:
        """A node for this operation; nonlinear pieces treat one number per sample as a vector of length 1.

        Raises NotCoveredError if the piece does not fit the shapes, which would be a defect of the rule.
        """
        wanted = self.out_shape if shape is None else shape
        if isinstance(piece, Linear):
            return self._checked(piece, inputs, wanted)
        vectors = tuple(value if value.shape else self.same(value, (1,)) for value in inputs)
        if isinstance(piece, Opaque):
            return self._checked(piece, vectors, wanted)
        node = self._checked(piece, vectors, wanted or (1,))
        return node if wanted else self.same(node, wanted)

    def _checked(self, piece: Piece, inputs: tuple[Node, ...], shape: Shape) -> Node:
        require_fitting(piece, [value.shape for value in inputs], shape)
        return Node(piece, inputs, shape, path_of(self.origin), self.origin)

    def elementwise(self, source: Node, function: Activation) -> Node:
        """The function applied to every coordinate of `source`, broadcast to the shape of the output first."""
        each = None
        if broadcast_size(function.parameters):
            far = torch.full(self.out_shape, math.inf, dtype=torch.float64, device=self.device)
            each = function.slopes_on(-far, far)
        return self.make(Elementwise(function, each=each), self.expanded(source))

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

    def linear(self, source: Node, linear_map: LinearMap, *, shift: float = 0.0, peak: float | None = None) -> Node:
        """The image of `source` under a linear map; `shift` and `peak` as in `Linear`."""
        return self.make(Linear(linear_map, shift, peak=peak), source, shape=linear_map.out_shape)

    def same(self, source: Node, shape: Shape | None = None, *, shift: float = 0.0, peak: float | None = None) -> Node:
        """The values of `source`, shifted by a constant or in another shape."""
        here = Identity(source.shape, self.out_shape if shape is None else shape)
        return self.linear(source, here, shift=shift, peak=peak)

    def size(self, constant: Any) -> float:
        """At or above the l2 norm, for each sample, of a constant that broadcasts against the output."""
        values = torch.as_tensor(constant, dtype=torch.float64)
        rows = values.flatten(1) if values.ndim > len(self.out_shape) > 0 else values.reshape(1, -1)
        copies = math.prod(self.out_shape) / max(1, rows.shape[1])
        return float(rows.norm(dim=1).max()) * math.sqrt(max(1.0, copies)) * (1 + 1e-12)

    def plus(self, source: Node, *constants: Any) -> Node:
        """`source`, in the shape of the output, plus constants as in `added`."""
        shift, peak = self.added(*constants)
        return self.same(source, shift=shift, peak=peak)

    def added(self, *constants: Any) -> tuple[float, float]:
        """`shift` and `peak` (see `Linear`) of constants that broadcast against the output; None stands for 0."""
        given = [torch.as_tensor(constant).detach().to(torch.float64) for constant in constants if constant is not None]
        shift, peak = math.fsum(map(self.size, given)), math.fsum(float(value.abs().max()) for value in given)
        if not math.isfinite(shift):
            raise NotCoveredError("with a constant that is not finite")
        return shift * (1 + 1e-12), peak * (1 + 1e-12)

    def expanded(self, source: Node) -> Node:
        """`source` broadcast to the shape of the output."""
        if source.shape == self.out_shape:
            return source
        if len(source.shape) != len(self.out_shape):
            raise NotCoveredError("that lays the batch beside another axis")
        return self.rearranged(source, lambda numbers: numbers.expand(self.out_shape))

    def rearranged(self, source: Node, move: Callable[[Tensor], Tensor]) -> Node:
        """The coordinates of `source`, moved as `move` does with their numbers (*source.shape); -1 is a zero."""
        numbers = move(torch.arange(math.prod(source.shape), device=self.device).reshape(source.shape))
        return self.linear(source, rearranged(numbers, source.shape))

    def axes(self, source: Node, given: int | Sequence[int] | None) -> tuple[int, ...]:
        """The unbatched axes of `source` given as axes of the batch; refused if these include the batch itself."""
        rank = len(source.shape) + 1
        axes = tuple(axis % rank - 1 for axis in ([given] if isinstance(given, int) else given or [0]))
        if -1 in axes:
            raise NotCoveredError("over the batch")
        return axes


def require_fitting(piece: Piece, inputs: Sequence[Shape], shape: Shape) -> None:
    """Refuse a piece that does not map inputs of these shapes to this shape: its rule has a defect.

    In particular, an elementwise piece must not be larger than its input, since repeated values would count only once.
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
        case Product():
            fits = list(inputs) == [shape, shape]
        case Opaque():
            fits = len(inputs) == 1 and piece.out_shape(inputs[0]) == shape
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


def name_of(origin: fx.Node) -> str:
    """The ATen name of an operation without its overload."""
    return str(origin.target).removeprefix("aten.").split(".")[0]


def numbers(value: Sequence[int] | int | None, rank: int) -> list[int]:
    """One number per axis; empty for torch's default."""
    given = [value] if isinstance(value, int) else list(value or [])
    return given * rank if len(given) == 1 else given


def unbatched(value: Tensor) -> Shape:
    """Shape of one sample; the first axis must be the batch."""
    if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] != BATCH:
        raise NotCoveredError("that does not keep the batch as the first axis")
    return tuple(int(side) for side in value.shape[1:])
