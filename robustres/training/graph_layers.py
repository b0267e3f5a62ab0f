"""The layers of a network of any origin, from its captured graph: all operations that multiply by weights.

A layer is an operation between the network's input and its output that multiplies by weights (a convolution, a matrix
product, a scale), together with the scales and batch normalisations that are applied directly to its result.
"""

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from robustres.certify.graph.capture import Captured, operation_of, path_of
from robustres.certify.graph.network import Elementwise, Linear, Node
from robustres.certify.graph.reading import read_network
from robustres.certify.maps.folding import composed
from robustres.certify.maps.linear_map import Identity, LinearMap
from robustres.certify.maps.nonlinear import Opaque
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.errors import ModelError
from robustres.models.constraints.operator_norm import STORAGE_SLACK

PRODUCTS = frozenset(
    (
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution"),
        *("linear", "addmm", "mm", "matmul", "bmm", "mv", "einsum"),
    )
)
NORMALISATIONS = frozenset({"batch_norm", "_native_batch_norm_legit_no_training"})
SCALES = NORMALISATIONS | {"mul", "multiply", "div", "divide", "true_divide"}
SHIFTS = frozenset({"add", "sub", "rsub"})
# Of a weight's value, operations that keep it proportional to the weight.
MOVES = frozenset(
    (
        *("t", "transpose", "permute", "view", "reshape", "unsqueeze", "squeeze", "clone", "detach", "alias"),
        *("contiguous", "expand", "neg", "mul", "div"),  # the last two with a number: weights are one at a time here
    )
)


@dataclass(frozen=True, eq=False)
class GraphLayer:
    """A layer at the size of its input.

    constant: at or above its Lipschitz constant. weight: the name of the tensor to which its map is proportional, None
        if there is none. shared: whether other parts of the layer have their own weights.
    """

    path: str
    operation: str
    constant: float
    weight: str | None
    shared: bool

    def __str__(self) -> str:
        return f"{self.path or 'the top of the network'} ({self.operation})"


def bring_below(network: nn.Module, input_shape: tuple[int, ...], budget: float) -> None:
    """Divide, in place, the weight of every layer by the factor by which its norm exceeds the budget.

    Raises ModelError naming a layer whose map is not proportional to its own weight, UnsupportedOperationError for a
    network that the certifier cannot analyse.
    """
    factors: dict[str, float] = {}
    for layer in graph_layers(network, input_shape):
        if layer.constant <= budget:
            continue
        if layer.weight is None:
            raise _not_below(layer, budget, "its weights are computed from others, or it has none that scales it")
        factors[layer.weight] = min(factors.get(layer.weight, 1.0), budget / layer.constant)
    tensors = {**dict(network.named_buffers()), **dict(network.named_parameters())}
    with torch.no_grad():
        for name, factor in factors.items():
            tensors[name].mul_(factor / (1 + max(STORAGE_SLACK, 2 * torch.finfo(tensors[name].dtype).eps)))


def require_below(network: nn.Module, input_shape: tuple[int, ...], budget: float) -> None:
    """ModelError naming a layer of the network as it is stored whose norm is not proved to be below the budget."""
    for layer in graph_layers(network, input_shape):
        if layer.constant > budget:
            raise _not_below(layer, budget, "dividing its weight does not divide its norm")


def _not_below(layer: GraphLayer, budget: float, why: str) -> ModelError:
    return ModelError(
        f"{layer} has a constant of up to {layer.constant:.6g} and cannot be brought below {budget:g}: {why}; replace "
        "it by a layer with a plain weight, or raise the budget"
    )


def graph_layers(network: nn.Module, input_shape: tuple[int, ...]) -> list[GraphLayer]:
    """Every layer of the network, in the order of the graph; activations and stated modules with weights too."""
    captured, output = read_network(network, input_shape)
    return list(_layers(output.ordered(), _Origins(captured)))


@dataclass(frozen=True, eq=False)
class _Chain:
    """Operations in a row that make one layer.

    leading: operations that the layer's module applies to its input first, such as a padding that repeats pixels.
    """

    nodes: tuple[Node, ...]
    operations: tuple[fx.Node, ...]
    leading: tuple[Node, ...]

    def constant(self) -> float:
        """At or above the norm of the operations, and of their composition with the leading ones."""
        alone = spectral_norm(_map(self.nodes)).upper
        if all(isinstance(node.piece, Linear) and isinstance(node.piece.map, Identity) for node in self.leading):
            return alone
        return max(alone, spectral_norm(_map((*self.leading, *self.nodes))).upper)


def _map(nodes: tuple[Node, ...]) -> LinearMap:
    return composed([node.piece.map for node in nodes if isinstance(node.piece, Linear)])


def _leading(node: Node, consumers: Counter[Node]) -> tuple[Node, ...]:
    """The linear operations of the same module that lead to the node and to nothing else."""
    nodes: list[Node] = []
    while (
        node.inputs
        and node.path
        and isinstance(node.inputs[0].piece, Linear)
        and node.inputs[0].path == node.path
        and consumers[node.inputs[0]] == 1
    ):
        node = node.inputs[0]
        nodes.insert(0, node)
    return tuple(nodes)


def _layers(order: list[Node], origins: "_Origins") -> Iterator[GraphLayer]:
    consumers = Counter(parent for node in order for parent in node.inputs)
    chains: dict[Node, _Chain] = {}  # by the node that ends them
    for node in order:
        operation = origins.operation(node)
        name = _name(operation)
        if isinstance(node.piece, Elementwise | Opaque):
            constant = node.piece.constant if isinstance(node.piece, Elementwise) else node.piece.bound.upper
            if constant > 1 and origins.weights(operation):
                yield GraphLayer(node.path, operation_of(operation), constant, None, True)
        if not isinstance(node.piece, Linear) or not node.inputs:
            continue
        before = chains.get(node.inputs[0])
        goes_on = before is not None and consumers[node.inputs[0]] == 1
        if before is not None and before.operations[-1] is operation:
            del chains[node.inputs[0]]
            chains[node] = _Chain((*before.nodes, node), before.operations, before.leading)
        elif name in SCALES and goes_on and before is not None and origins.is_weighted(operation):
            del chains[node.inputs[0]]
            chains[node] = _Chain((*before.nodes, node), (*before.operations, operation), before.leading)
        elif origins.is_weighted(operation):
            own = _with_broadcast(node, origins)
            chains[node] = _Chain(own, (operation,), _leading(own[0], consumers))
    for chain in chains.values():
        first, *others = chain.operations
        path = chain.nodes[-1].path if path_of(first) == "" else path_of(first)
        shared = any(origins.weights(other) and _name(other) not in NORMALISATIONS for other in others)
        yield GraphLayer(path, operation_of(first), chain.constant(), origins.proportional_to(first), shared)


def _with_broadcast(node: Node, origins: "_Origins") -> tuple[Node, ...]:
    """The node with the broadcast that its operation applies to the input first."""
    nodes = [node]
    while nodes[0].inputs and origins.operation(nodes[0].inputs[0]) is origins.operation(node):
        nodes.insert(0, nodes[0].inputs[0])
    return tuple(nodes)


def _name(operation: fx.Node) -> str:
    return operation_of(operation).removeprefix("aten.")


class _Origins:
    """From operations of the captured graph back to the named tensors of the network."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        module = captured.module
        self.parameters = {_place(p): name for name, p in module.named_parameters() if p.numel()}
        self.tensors = {_place(b): name for name, b in module.named_buffers() if b.numel()} | self.parameters

    def operation(self, node: Node) -> fx.Node:
        """The operation that makes a value, also one of several."""
        origin = node.origin
        parent = origin.args[0] if origin.target is operator.getitem else None
        return parent if isinstance(parent, fx.Node) else origin

    def is_weighted(self, operation: fx.Node) -> bool:
        """Whether it multiplies by weights: by a constant tensor, or by what is computed from parameters."""
        name = _name(operation)
        if name in NORMALISATIONS:
            return True
        if name in SHIFTS:
            return False
        if name in PRODUCTS:
            return bool(self._constants(operation))
        return bool(self.weights(operation))

    def weights(self, operation: fx.Node) -> set[str]:
        """The names of the parameters that it depends on, other than through its input."""
        stack, names = self._constants(operation), set[str]()
        while stack:
            node = stack.pop()
            value = self.captured.constants.get(node)
            if not node.all_input_nodes and isinstance(value, Tensor) and _place(value) in self.parameters:
                names.add(self.parameters[_place(value)])
            stack.extend(node.all_input_nodes)
        return names

    def proportional_to(self, operation: fx.Node) -> str | None:
        """The name of the tensor by a multiple of which the operation multiplies; None where it is a computed one."""
        position = {"addmm": 2}.get(_name(operation), 1)
        arguments = operation.args
        if (
            _name(operation) in SCALES | {"mm", "matmul"}
            and len(arguments) > 1
            and arguments[0] in self._constants(operation)
        ):
            position = 0
        if "div" in _name(operation) or len(arguments) <= position:
            return None
        node = arguments[position]
        while isinstance(node, fx.Node) and node.all_input_nodes:
            if _name(node) not in MOVES or len(node.all_input_nodes) != 1 or not isinstance(node.args[0], fx.Node):
                return None
            node = node.all_input_nodes[0]
        value = self.captured.constants.get(node) if isinstance(node, fx.Node) else None
        return self.tensors.get(_place(value)) if isinstance(value, Tensor) else None

    def _constants(self, operation: fx.Node) -> list[fx.Node]:
        return [
            node
            for node in operation.all_input_nodes
            if isinstance(self.captured.constants.get(node), Tensor)
            and self.captured.constants[node].is_floating_point()
        ]


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)
