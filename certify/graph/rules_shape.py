"""Rules for operations that move, copy, drop or pad coordinates: reshape, permute, slice, split, pad, upsample."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from robustres.certify.graph.by_trying import matrix_of
from robustres.certify.graph.call import Call, NotCoveredError, Parts, unbatched
from robustres.certify.graph.capture import BATCH
from robustres.certify.graph.network import Merge, Node
from robustres.certify.graph.operation_rules import SHAPE_ONLY
from robustres.certify.graph.registry import rule
from robustres.certify.graph.rules_arithmetic import PRODUCT
from robustres.certify.maps.coordinate_maps import rearranged
from robustres.certify.maps.linear_map import Dense

SAME = (
    *("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "positive", "to", "_to_copy", "type_as"),
    *("conj", "resolve_conj", "resolve_neg", "real", "conj_physical", "nan_to_num"),
)
# Operations that only move, copy or drop elements, and insert constants.
MOVING = (
    *("view", "_unsafe_view", "reshape", "view_copy", "view_as", "reshape_as", "_reshape_alias", "flatten"),
    *("unflatten", "squeeze", "unsqueeze", "squeeze_copy", "unsqueeze_copy", "ravel", "permute", "permute_copy"),
    *("transpose", "t", "numpy_T", "mT", "matrix_H", "adjoint", "movedim", "moveaxis", "swapaxes", "swapdims"),
    *("flip", "fliplr", "flipud", "rot90", "roll", "channel_shuffle", "native_channel_shuffle", "pixel_shuffle"),
    *("pixel_unshuffle", "slice", "slice_copy", "select", "select_copy", "narrow", "narrow_copy", "diagonal"),
    *("diagonal_copy", "unfold", "index", "_unsafe_index", "index_select", "gather", "take_along_dim", "take"),
    *("tril", "triu", "expand", "expand_as", "expand_copy", "broadcast_to", "repeat", "repeat_interleave", "tile"),
    *("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split", "hsplit", "vsplit"),
    *("unbind", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d"),
    *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "constant_pad_nd", "pad", "im2col"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d"),
    *("replication_pad3d", "_pad_circular", "zero", "slice_scatter", "select_scatter", "diagonal_scatter"),
    *("index_copy", "scatter.src", "scatter.value", "copy", "index_put", "_unsafe_index_put", "masked_fill"),
    *("index_fill", "fill", "block_diag", "diag_embed"),
)


@rule(*SAME)
def same(call: Call) -> Node:
    """The same values; a conversion that rounds has been refused before."""
    return call.same(call.states()[0])


@rule(*SHAPE_ONLY)
def constant(call: Call) -> Tensor:
    """A constant of the shape of the input."""
    answer: Tensor = call.evaluate({state: torch.zeros(BATCH, *state.shape).double() for state in call.states()})
    return answer.to(call.device)


@rule("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
def dropout(call: Call) -> Node:
    """The identity in evaluation mode, and where nothing is dropped."""
    if call.constant("train") and call["p"]:
        raise NotCoveredError("in training mode, whose output is random")
    return call.same(call.only_input)


@rule(*MOVING)
def moved(call: Call) -> Any:
    """Run the operation on the indices 1, 2, ... of its inputs' coordinates and locate them in the output."""
    if call.arguments.get("accumulate"):
        return put_together(call)
    _require_known_places(call)
    states = call.states()
    device, start, numbers, constants = call.device, 1, {}, _real_constants(call)
    for state in states:
        count = BATCH * math.prod(state.shape)
        values = torch.arange(start, start + count, dtype=torch.float64, device=device)
        numbers[state], start = values.reshape(BATCH, *state.shape), start + count
    answer = replace(call, arguments=_without_constants(call)).evaluate(numbers)
    if call.name in PUTTING:
        _require_one_value_per_place(call, answer)
    parts = [answer] if isinstance(answer, Tensor) else list(answer)
    placed = [_placed(part, states) for part in parts]  # refuses an output that mixes samples
    source = states[0]
    if len(states) > 1:
        flat = [call.same(state, (math.prod(state.shape),)) for state in states]
        source = call.make(Merge("concatenation", 0), *flat, shape=(sum(math.prod(state.shape) for state in states),))
    # The constants in the output: each occurs at most as often as the output has elements.
    shift = max(map(abs, constants), default=0.0) * math.sqrt(max(part[0].numel() for part in parts))
    nodes = [
        call.linear(source, rearranged(index.reshape(part.shape[1:]), source.shape), shift=shift)
        for index, part in zip(placed, parts, strict=True)
        if part.numel()
    ]
    if len(nodes) < len(parts):
        raise NotCoveredError("with an output that is empty")
    return nodes[0] if isinstance(answer, Tensor) else Parts(tuple(nodes))


PUTTING = frozenset({"scatter", "index_put", "_unsafe_index_put", "index_copy"})


def _require_one_value_per_place(call: Call, answer: Tensor) -> None:
    """Refuse several values for one place, of which torch keeps any. answer: a value of the shape of the output."""
    none: Tensor = torch.zeros_like(answer)
    where: Any = call.arguments.get("index")
    if "value" in call.arguments or ("values" in call.arguments and math.prod(call["values"].shape) == 1):
        return  # one number for all places
    if call.name == "scatter":
        counts = none.scatter_add(call["dim"], where, torch.ones_like(where, dtype=none.dtype))
    elif call.name == "index_copy":
        counts = none.index_add(call["dim"], where, torch.ones_like(none.index_select(call["dim"], where)))
    else:
        counts = torch.ops.aten.index_put(none, call["indices"], none.new_ones(()), True)
    if bool((counts > 1).any()):
        raise NotCoveredError("with several values for one place, of which torch keeps any")


@rule("index_add", "scatter_add", "scatter_reduce", "diff", "kron")
def put_together(call: Call) -> Node:
    """Scattered sums, differences of neighbours, products with every entry of a constant: the sum of the linear maps of
    all states, found by applying the operation to unit vectors."""
    _require_known_places(call)
    if call.arguments.get("reduce") not in (None, "sum", "mean"):
        raise NotCoveredError(f"by {call['reduce']}; sums and means have a rule")
    states, device = call.states(), call.device
    nothing = {state: torch.zeros(BATCH, *state.shape, dtype=torch.float64, device=device) for state in states}
    factors = call.name == "kron"
    if factors and len(states) > 1:
        raise NotCoveredError(PRODUCT)
    bare = call if factors else replace(call, arguments=_without_constants(call))
    images = []
    for state in states:

        def image(values: Tensor, state: Node = state) -> Tensor:
            answer: Tensor = bare.evaluate({**nothing, state: values})
            return answer

        if unbatched(image(nothing[state])) != call.out_shape:
            raise NotCoveredError("that mixes the samples of a batch")
        matrix, seen = matrix_of(call, state, image), 1 + math.prod(state.shape)
        images.append(call.linear(state, Dense(matrix, state.shape, call.out_shape, seen=seen)))
    total = images[0] if len(images) == 1 else call.make(Merge("sum"), *images)
    shift = float(call.evaluate(nothing).to(torch.float64).norm()) * (1 + 1e-12)
    if not math.isfinite(shift):
        raise NotCoveredError("with a constant that is not finite")
    return call.same(total, shift=shift) if shift else total


def _require_known_places(call: Call) -> None:
    """Refuse indices that depend on the input."""
    for name in PLACES & set(call.arguments):
        leaves = tree_leaves(call[name], is_leaf=lambda leaf: isinstance(leaf, Node))
        if any(isinstance(leaf, Node) for leaf in leaves):
            raise NotCoveredError(f"whose {name} depends on the input")


# Arguments whose tensors are indices or masks; every other constant may occur in the output.
PLACES = frozenset({"indices", "index", "mask", "condition", "repeats", "tensor_indices_or_sections"})


def _without_constants(call: Call) -> dict[str, Any]:
    """The arguments with 0 in place of every constant that may occur in the output."""

    def zero(leaf: Any) -> Any:
        return torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf

    def without(name: str, value: Any) -> Any:
        if name == "value" and isinstance(value, int | float):
            return 0.0
        return value if name in PLACES else tree_map(zero, value, is_leaf=lambda leaf: isinstance(leaf, Node))

    return {name: without(name, value) for name, value in call.arguments.items()}


def _real_constants(call: Call) -> list[float]:
    """The largest absolute value of each constant among the arguments that may occur in the output."""
    found = [float(call["value"])] if isinstance(call.arguments.get("value"), int | float) else []
    others = {name: value for name, value in call.arguments.items() if name not in PLACES}
    for value in tree_leaves(others, is_leaf=lambda leaf: isinstance(leaf, Node)):
        if isinstance(value, Tensor) and value.numel():
            found.append(float(value.to(torch.float64).abs().max()))
    if not all(map(math.isfinite, found)):
        raise NotCoveredError("with a constant that is not finite")
    return found


def _placed(answer: Tensor, states: Sequence[Node]) -> Tensor:
    """The source of each output coordinate of a sample: its index in the concatenated states, or -1 for a constant."""
    if answer.ndim == 0 or answer.shape[0] != BATCH:
        raise NotCoveredError("that does not keep the batch as the first axis")
    number = answer.reshape(BATCH, -1).to(torch.int64) - 1
    samples = torch.arange(BATCH, device=number.device)[:, None]
    index = torch.full_like(number, -1)
    first = offset = 0
    for state in states:
        size = math.prod(state.shape)
        own = number - first - samples * size
        whose = (number >= first) & (number < first + BATCH * size)
        if bool((whose & ((own < 0) | (own >= size))).any()):
            raise NotCoveredError("that mixes the samples of a batch")
        index = torch.where(whose, own + offset, index)
        first, offset = first + BATCH * size, offset + size
    if not bool((index == index[:1]).all()):
        raise NotCoveredError("that mixes the samples of a batch")
    return index[0]


@rule("where")
def chosen(call: Call) -> Any:
    """A selection between two values by a condition that does not depend on the input."""
    if isinstance(call["condition"], Node):
        raise NotCoveredError("whose condition depends on the input")
    return moved(call)


@rule("cat", "concat", "concatenate", "stack")
def concatenated(call: Call) -> Any:
    """A concatenation of inputs: their squared distances add. Constants are put in as by any other move."""
    axis = int(call["dim"]) % (len(call.out_shape) + 1) - 1
    if axis < 0:
        raise NotCoveredError("over the batch")
    inputs = [operand for operand in call["tensors"] if isinstance(operand, Node) or operand.numel()]
    if not all(isinstance(operand, Node) for operand in inputs):
        return moved(call)
    if call.name == "stack":
        inputs = [call.same(operand, (*operand.shape[:axis], 1, *operand.shape[axis:])) for operand in inputs]
    return inputs[0] if len(inputs) == 1 else call.make(Merge("concatenation", axis), *inputs)
