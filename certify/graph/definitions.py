"""Operations without a rule, replaced by the operations that define them: in torch's own words, or in those below.

Torch defines most of its operations by others ("composite" operations, and its table of decompositions). One that has
no rule is traced once, on values of the captured shapes, and its definition takes its place in the graph; so rules are
needed only for what is left. The definitions below hold in exact arithmetic and are chosen so that they have bounds:
a standard deviation is the length of a vector, not the root of a sum of squares.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from robustres.certify.graph.registry import is_known
from robustres.certify.graph.single_function import AGREEMENT, close

DEEPEST = 8  # definitions within definitions
LONGEST = 64  # steps of a recurrence or factors of a product that are written out


def define(module: fx.GraphModule, source: str | None) -> None:
    """Replace the operations on the input, the node `source`, that are not registered by their definitions if any."""
    depth: dict[fx.Node, int] = {}
    depending = {node for node in module.graph.nodes if node.name == source}
    waiting = list(module.graph.nodes)
    while waiting:
        node = waiting.pop(0)
        if not depending.intersection(node.all_input_nodes):
            continue
        depending.add(node)
        if depth.get(node, 0) >= DEEPEST or _is_kept(node):
            continue
        definition = _definition(node)
        if definition is not None:
            made = _put_in_place(module, node, definition)
            depth |= dict.fromkeys(made, depth.get(node, 0) + 1)
            waiting = made + waiting


def _is_kept(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return True
    name = str(node.target).removeprefix("aten.")
    if name.split(".")[0] in DEFINITIONS:
        return False
    return is_known(name) or is_known(name.split(".")[0]) or torch.Tag.nondeterministic_seeded in node.target.tags


def _definition(node: fx.Node) -> fx.GraphModule | None:
    """The operation as a graph of others whose inputs are those of the node; None if it has no definition."""
    op: Any = node.target
    function = DEFINITIONS.get(op.overloadpacket.__name__, op)
    table = {op: decomposition_table[op]} if function is op and op in decomposition_table else {}
    inputs = node.all_input_nodes

    def applied(*values: Tensor) -> Any:
        known = dict(zip(inputs, values, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda argument: known[argument])
        return function(*args, **kwargs)

    examples = [_example(of.meta["val"], place) for place, of in enumerate(inputs)]
    try:
        # Without in-place changes: one of a part of a value would otherwise be lost with the name of that part.
        graph = make_fx(torch.func.functionalize(applied), decomposition_table=table, tracing_mode="fake")(*examples)
    except Exception:  # any error of torch in the definition leaves the operation as it is
        return None
    steps = [step for step in graph.graph.nodes if step.op == "call_function"]
    same = any(step.target is op for step in steps)
    if same or not all(map(_is_usable, steps)) or not _same_form(node, graph):
        return None
    return graph if _same_values(op, node, inputs, examples, graph) else None


def _example(like: Tensor, seed: int) -> Tensor:
    """Random numbers or conditions in the form of a value; zeros for integers, which may be indices."""
    numbers = torch.randn(tuple(like.shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if like.dtype == torch.bool:
        return numbers > 0
    return numbers.to(like.dtype) if like.is_floating_point() else torch.zeros_like(numbers, dtype=like.dtype)


def _is_usable(step: fx.Node) -> bool:
    """Whether it is an ATen operation that changes none of its arguments, or an output of one."""
    op = step.target
    return op is operator.getitem or (
        isinstance(op, torch._ops.OpOverload)
        and op.namespace == "aten"
        and not op._schema.is_mutable
        and "val" in step.meta
    )


def _same_form(node: fx.Node, graph: fx.GraphModule) -> bool:
    """Whether the definition gives values of the captured shapes and types."""
    found = [step.meta["val"] for step in tree_leaves(_answer(graph)) if isinstance(step, fx.Node)]
    wanted = [value for value in tree_leaves(node.meta["val"]) if isinstance(value, Tensor)]
    return [(value.shape, value.dtype) for value in found] == [(value.shape, value.dtype) for value in wanted]


def _same_values(
    op: Any, node: fx.Node, inputs: Sequence[fx.Node], examples: Sequence[Tensor], graph: fx.GraphModule
) -> bool:
    """Whether the definition and the operation itself give the same values for the examples."""
    known = dict(zip(inputs, examples, strict=True))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda argument: known[argument])
    try:
        with torch.no_grad():
            wanted, found = tree_leaves(op(*args, **kwargs)), tree_leaves(graph(*examples))
    except Exception:  # any error of torch for these values, for example outside the domain of the operation
        return False
    return all(map(_agree, wanted, found))


def _agree(left: Any, right: Any) -> bool:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return bool(left == right)
    return close(left, right, AGREEMENT) if left.is_floating_point() else torch.equal(left, right)


def _answer(graph: fx.GraphModule) -> Any:
    return next(step for step in graph.graph.nodes if step.op == "output").args[0]


def _put_in_place(module: fx.GraphModule, node: fx.Node, definition: fx.GraphModule) -> list[fx.Node]:
    """The nodes of the definition, copied in front of the node, which they replace."""
    copies: dict[fx.Node, fx.Node] = {}
    inputs = iter(node.all_input_nodes)
    with module.graph.inserting_before(node):
        for step in definition.graph.nodes:
            if step.op == "placeholder":
                copies[step] = next(inputs)
            elif step.op == "get_attr":
                name = f"_{node.name}_{step.target}"
                setattr(module, name, getattr(definition, step.target))
                copies[step] = module.graph.get_attr(name)
            elif step.op != "output":
                copies[step] = module.graph.node_copy(step, lambda argument: copies[argument])
                whole = node.meta.get("defined", node.target)
                copies[step].meta = {**node.meta, "val": step.meta["val"], "defined": whole}
    answer = tree_map(lambda part: copies[part] if isinstance(part, fx.Node) else part, _answer(definition))
    if isinstance(answer, fx.Node):
        node.replace_all_uses_with(answer)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(answer[user.args[1]])
            module.graph.erase_node(user)
    module.graph.erase_node(node)
    return [copy for step, copy in copies.items() if step.op in ("call_function", "get_attr")]


def _centred(x: Tensor, dim: Any) -> Tensor:
    return x - x.mean(dim, keepdim=True)


def _freedom(x: Tensor, dim: Any, correction: float | None) -> float:
    axes = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return math.prod(x.shape[axis] for axis in axes) - (1 if correction is None else correction)


def _std(
    x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
) -> Tensor:
    """The length of the values minus their mean, over sqrt(n - correction)."""
    over = _freedom(x, dim, int(unbiased) if correction is None else correction)
    length: Tensor = torch.linalg.vector_norm(_centred(x, dim), 2, dim, keepdim)
    return length / math.sqrt(over)


def _var(*args: Any, **kwargs: Any) -> Tensor:
    return _std(*args, **kwargs).square()


def _with_mean(spread: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The spread of the values, and their mean in the same form."""

    def both(x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        found = spread(x, dim, *args, **kwargs)
        return found, x.mean(dim, keepdim=True).reshape(found.shape)

    return both


def _distances(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """torch.cdist."""
    distances: Tensor = torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, -1)
    return distances


def _bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x^T W_o y for every output o."""
    image = torch.tensordot(x, weight, ([-1], [1]))
    total: Tensor = (image * y.unsqueeze(-2)).sum(-1)
    return total if bias is None else total + bias


def _pairs(x: Tensor, y: Tensor) -> Tensor:
    """Both values at each coordinate, along a new axis."""
    return torch.stack(torch.broadcast_tensors(x, y), -1)  # type: ignore[no-untyped-call]


def _power(x: Tensor, exponent: Any) -> Any:
    if isinstance(exponent, Tensor) or exponent not in (0, 1):
        return torch.ops.aten.pow(x, exponent)
    return torch.ones_like(x) if exponent == 0 else x.clone()


def _put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """x[mask] = number."""
    mask = indices[0]
    if accumulate or mask is None or mask.dtype != torch.bool or mask.shape != x.shape or values.numel() != 1:
        raise ValueError
    return torch.where(mask, values.reshape(()), x)


def _products(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """Cumulative products, in the type `dtype` if one is given."""
    x = x if dtype is None else x.to(dtype)
    parts = [x.select(dim, 0)]
    for place in range(1, min(x.shape[dim], LONGEST)):
        parts.append(parts[-1] * x.select(dim, place))
    return torch.stack(parts, dim)


def _product(x: Tensor, dim: int, keepdim: bool = False, dtype: Any = None) -> Tensor:
    part = _products(x, dim, dtype).select(dim, x.shape[dim] - 1)
    return part.unsqueeze(dim) if keepdim else part


def _recurrent(step: Callable[..., Tensor]) -> Callable[..., Any]:
    """A recurrent network, written out step by step and layer by layer."""

    def run(
        x: Tensor, start: Any, weights: Sequence[Tensor], biased: bool, layers: int, dropout: float, training: bool,
        bidirectional: bool, batch_first: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        time, sides, per = int(batch_first), 1 + bidirectional, 4 if biased else 2
        if x.shape[time] > LONGEST or (training and dropout):
            raise ValueError
        values, last = list(x.unbind(time)), []
        for layer in range(layers):
            ways = []
            for side in range(sides):
                own = layer * sides + side
                state, seen = start[own], []
                for value in reversed(values) if side else values:
                    state = step(value, state, *weights[own * per : (own + 1) * per])
                    seen.append(state)
                ways.append(seen[::-1] if side else seen)
                last.append(state)
            values = [torch.cat(parts, -1) if sides > 1 else parts[0] for parts in zip(*ways, strict=True)]
        return torch.stack(values, time), torch.stack(last)

    return run


def _cell(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def step(x: Tensor, state: Tensor, own: Tensor, back: Tensor, *biases: Tensor) -> Tensor:
        moved = torch.nn.functional.linear(x, own, *biases[:1])
        return function(moved + torch.nn.functional.linear(state, back, *biases[1:]))

    return step


DEFINITIONS: dict[str, Callable[..., Any]] = {
    "std": _std,
    "var": _var,
    "std_mean": _with_mean(_std),
    "var_mean": _with_mean(_var),
    "cdist": _distances,
    "hypot": lambda x, y: torch.linalg.vector_norm(_pairs(x, y), 2, -1),
    "logaddexp": lambda x, y: torch.logsumexp(_pairs(x, y), -1),
    "bilinear": _bilinear,
    "pow": _power,
    "exp2": lambda x: torch.exp(x * math.log(2)),
    "log2": lambda x: torch.log(x) / math.log(2),
    "log10": lambda x: torch.log(x) / math.log(10),
    "index_put": _put,
    "cumprod": _products,
    "prod": _product,
    "rnn_tanh": _recurrent(_cell(torch.tanh)),
    "rnn_relu": _recurrent(_cell(torch.relu)),
}
