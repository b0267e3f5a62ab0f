"""Rules for operations that move, copy, drop or pad coordinates: reshape, permute, slice, split, pad, upsample."""

import math

import torch
from torch import Tensor

from robustres.certify.graph.capture import BATCH, device_of
from robustres.certify.graph.network import Merge, Node
from robustres.certify.graph.operation_rules import Call, NotCoveredError, Parts, rule
from robustres.certify.maps.coordinate_maps import Selection
from robustres.certify.maps.linear_map import Identity, LinearMap, Shape

SAME = ("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "positive")
MOVING = (
    *("view", "_unsafe_view", "reshape", "view_copy", "flatten.using_ints", "unflatten.int", "squeeze", "unsqueeze"),
    *("permute", "transpose.int", "t", "numpy_T", "movedim", "swapaxes", "flip", "roll", "channel_shuffle"),
    *("slice.Tensor", "select.int", "narrow", "expand", "repeat", "split", "split_with_sizes", "chunk", "unbind.int"),
    *("pixel_shuffle", "pixel_unshuffle", "upsample_nearest2d", "constant_pad_nd", "pad", "im2col"),
    *("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
)


@rule(*SAME)
def same(call: Call) -> Node:
    """The same numbers."""
    return call.same(call.only_input)


@rule("to", "_to_copy")
def cast(call: Call) -> Node:
    """A change of device or layout; a change of precision is no function with a Lipschitz constant."""
    if call.origin.meta["val"].dtype != torch.float64:
        raise NotCoveredError(f"to {call.origin.meta['val'].dtype}, which rounds")
    return call.same(call.only_input)


@rule("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(call: Call) -> Node:
    """Nothing in evaluation mode."""
    if call.constant("train"):
        raise NotCoveredError("in training mode")
    return call.same(call.only_input)


@rule(*MOVING)
def moved(call: Call) -> Node | Parts:
    """Run the operation on the numbers 1, 2, ... of its input's coordinates and read off where each went."""
    source = call.only_input
    size = torch.Size(source.shape).numel()
    numbers = torch.arange(1, BATCH * size + 1, dtype=torch.float64, device=device_of(call.captured.module))
    arguments = {name: value for name, value in call.arguments.items() if not isinstance(value, Node)}
    if "value" in arguments and arguments["value"] is not None:
        arguments["value"] = 0.0  # a constant in the padding is a shift
    name = next(name for name, value in call.arguments.items() if value is source)
    arguments[name] = numbers.reshape(BATCH, *source.shape)
    answer = call.origin.target(**arguments)  # type: ignore[operator]
    if isinstance(answer, Tensor):
        return call.linear(source, _selection(answer, source.shape))
    return Parts(tuple(call.linear(source, _selection(part, source.shape)) for part in answer))


def _selection(answer: Tensor, in_shape: Shape) -> LinearMap:
    """The map that put numbered coordinates (0: padding) where they stand now, the same for every sample."""
    size = torch.Size(in_shape).numel()
    if answer.ndim == 0 or answer.shape[0] != BATCH:
        raise NotCoveredError("that does not keep the batch as the first axis")
    index = answer.flatten(1).to(torch.int64) - 1
    offset = size * torch.arange(BATCH, device=index.device)[:, None]
    index = torch.where(index >= 0, index - offset, index)
    if not bool((index == index[0]).all()) or bool((index >= size).any()):
        raise NotCoveredError("that mixes the samples of a batch")
    out_shape = tuple(answer.shape[1:])
    if index.shape[1] == size and torch.equal(index[0], torch.arange(size, device=index.device)):
        return Identity(in_shape, out_shape)
    return Selection(index[0], in_shape, out_shape)


@rule("cat", "concat", "concatenate", "stack")
def concatenated(call: Call) -> Node:
    """Several inputs side by side: their squared distances add. Constants among them contribute nothing."""
    operands, rank = list(call["tensors"]), len(call.out_shape) + 1
    axis = int(call["dim"]) % rank - 1
    if axis < 0:
        raise NotCoveredError("over the batch")
    stacked = "stack" in str(call.origin.target)
    inputs, places, start = [], [], 0
    for operand in operands:
        if isinstance(operand, Node):
            shape = (*operand.shape[:axis], 1, *operand.shape[axis:]) if stacked else operand.shape
            inputs.append(call.same(operand, shape) if stacked else operand)
            places.append(torch.arange(start, start + shape[axis]))
            start += shape[axis]
        elif operand.numel():
            length = 1 if stacked else operand.shape[axis + 1]
            places.append(torch.full((length,), -1))
    joined = inputs[0]
    if len(inputs) > 1:
        shape = (*call.out_shape[:axis], start, *call.out_shape[axis + 1 :])
        joined = call.make(Merge("concatenation", axis), *inputs, shape=shape)
    place = torch.cat(places)
    if len(place) == start:
        return joined
    numbers = torch.arange(math.prod(joined.shape)).reshape(joined.shape)
    padded = torch.cat([numbers, numbers.new_full((*joined.shape[:axis], 1, *joined.shape[axis + 1 :]), -1)], axis)
    index = padded.index_select(axis, torch.where(place < 0, start, place))
    device = device_of(call.captured.module)
    constants = [operand for operand in operands if not isinstance(operand, Node)]
    shift = math.sqrt(sum(call.size(constant) ** 2 for constant in constants)) * (1 + 1e-12)
    return call.linear(joined, Selection(index.flatten().to(device), joined.shape, call.out_shape), shift=shift)
