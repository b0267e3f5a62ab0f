"""Comparison of two modules: types, weights, attributes and hooks, regardless of precision and mode."""

import math
import types
from typing import Any

import torch
from torch import Tensor, fx, nn

# Types compared by value.
PLAIN = (bool, int, float, complex, str, bytes, type(None), range, slice, frozenset, set)
PLAIN_TORCH = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
# Types compared by identity, since they are never copied.
SHARED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, torch._ops.OpOverload)
# Ignored attributes of modules: the mode of a module, and what a traced module stores beside its code.
IGNORED = frozenset({"training", "_graph", "_tracer_cls", "_tracer_extras", "_graphmodule_cls_name"})


def alike(left: Any, right: Any) -> bool:
    """Whether everything in two objects agrees; False if something cannot be compared.

    The values of tensors are compared, not their precision: a model and its copy in float64 are alike.
    """
    stack = [(left, right)]
    met: dict[tuple[int, int], tuple[Any, Any]] = {}  # keeps the objects alive, so that their ids stay unique
    while stack:
        one, other = stack.pop()
        if one is other or (id(one), id(other)) in met:
            continue
        met[id(one), id(other)] = one, other
        parts = _parts(one, other)
        if parts is None:
            return False
        stack.extend(parts)
    return True


def _parts(one: Any, other: Any) -> list[tuple[Any, Any]] | None:
    """The pairs that must be alike for two different objects to be alike; None if they are not, or if it is unknown."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return [] if _same_numbers(one, other) else None
    traced = isinstance(one, fx.GraphModule) and isinstance(other, fx.GraphModule)  # each has its own class
    if isinstance(one, SHARED) or (type(one) is not type(other) and not traced):
        return None
    if type(one) in PLAIN or isinstance(one, PLAIN_TORCH):
        return [] if one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other)) else None
    if type(one) in (list, tuple):
        return list(zip(one, other, strict=True)) if len(one) == len(other) else None
    if type(one) is dict:
        return [(one[key], other[key]) for key in one] if list(one) == list(other) else None
    if isinstance(one, types.MethodType):
        return [(one.__func__, other.__func__), (one.__self__, other.__self__)]
    if isinstance(one, fx.GraphModule) and one.code != other.code:
        return None
    if isinstance(one, nn.Module):
        kept, others = ({k: v for k, v in vars(x).items() if k not in IGNORED} for x in (one, other))
        return [(kept, others)]
    states = copied_state(one), copied_state(other)
    return None if None in states else [states]


def copied_state(value: Any) -> list[Any] | None:
    """The whole state of an object as for a copy of it, also what is in no dictionary; None if it cannot be given."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # any error of an object that cannot be copied
        return None
    if isinstance(reduced, str):  # the name of an object that is never copied
        return None
    return [*reduced[:3], *(None if part is None else list(part) for part in reduced[3:5])]


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values in the wider of their types."""
    if one.shape != other.shape or one.layout != other.layout or one.is_floating_point() != other.is_floating_point():
        return False
    wide = torch.promote_types(one.dtype, other.dtype)
    return torch.equal(one.detach().to(other.device, wide), other.detach().to(wide))
