"""Detection of activations that a file writes as several operators, such as x sigmoid(x) for SiLU.

A value that depends on one other value through elementwise functions is itself an elementwise function. It is evaluated
at many points and, if it agrees with one of torch's activations there, replaced by it: a product of two values has no
bound for all inputs, whereas SiLU has one.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

# The elementwise functions of which activations are composed.
SCALAR: frozenset[Callable[..., Any]] = frozenset(
    {
        *(torch.add, torch.sub, torch.rsub, torch.mul, torch.div, torch.pow, torch.neg, torch.exp, torch.log),
        *(torch.erf, torch.tanh, torch.sigmoid, torch.clamp, torch.reciprocal, torch.sqrt, torch.abs),
        *(functional.relu, functional.softplus, functional.softsign, functional.relu6, functional.hardsigmoid),
    }
)
PRODUCTS = frozenset({torch.mul, torch.div})
KNOWN: tuple[tuple[Callable[..., Tensor], Mapping[str, Any]], ...] = (
    (functional.silu, {}),
    (functional.gelu, {}),
    (functional.gelu, {"approximate": "tanh"}),
    (functional.hardswish, {}),
    (functional.mish, {}),
)
TOLERANCE = 1e-6
LONGEST = 16


def find_activations(graph: fx.Graph, root: nn.Module) -> None:
    """Replace the last operation of every composed activation, and remove operations that are no longer used."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target in PRODUCTS and node.users:
            found = _activation(node, order, root)
            if found is not None:
                source, function, settings = found
                with graph.inserting_after(node):
                    new = graph.call_function(function, (source,), dict(settings))
                order[new] = order[node]
                node.replace_all_uses_with(new)
    graph.eliminate_dead_code()


def _activation(
    last: fx.Node, order: Mapping[fx.Node, int], root: nn.Module
) -> tuple[fx.Node, Callable[..., Tensor], Mapping[str, Any]] | None:
    """The argument of the activation that the value is, and the activation."""
    inside: list[fx.Node] = []
    border = {last}
    for _ in range(LONGEST):
        node = max(border, key=lambda item: order[item])
        if node.op != "call_function" or node.target not in SCALAR:
            return None
        inside.append(node)
        border = (border - {node}) | {parent for parent in node.all_input_nodes if _number(parent, root) is None}
        if len(border) == 1 and len(inside) > 1:
            (source,) = border
            for function, settings in KNOWN:
                if _same(source, inside[::-1], function, settings, root):
                    return source, function, settings
        if not border:
            return None
    return None


def _number(node: fx.Node, root: nn.Module) -> float | None:
    """A constant with one element."""
    if node.op != "get_attr":
        return None
    path, _, name = str(node.target).rpartition(".")
    value = getattr(root.get_submodule(path), name)
    return float(value.detach()) if value.numel() == 1 else None


def _same(
    source: fx.Node, nodes: list[fx.Node], function: Callable[..., Tensor], settings: Mapping[str, Any], root: nn.Module
) -> bool:
    points = torch.linspace(-20, 20, 801, dtype=torch.float64)
    values: dict[fx.Node, Any] = {source: points}

    def known(node: fx.Node) -> Any:
        return values[node] if node in values else _number(node, root)

    try:
        for node in nodes:
            values[node] = node.target(*fx.node.map_arg(node.args, known), **fx.node.map_arg(node.kwargs, known))  # type: ignore[operator]
    except (RuntimeError, TypeError, KeyError):
        return False
    result = values[nodes[-1]]
    if not isinstance(result, Tensor) or result.shape != points.shape:
        return False
    return math.isfinite(float(result.sum())) and torch.allclose(
        result, function(points, **settings), rtol=TOLERANCE, atol=TOLERANCE
    )
