"""Sums, products and elementwise functions."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.registry import operator
from robustres.models.sources.onnx.traced import apply

UNARY: tuple[tuple[str, tuple[int, ...], Callable[[Tensor], Tensor]], ...] = (
    ("Abs", (6, 13), torch.abs),
    ("Acos", (7, 22), torch.acos),
    ("Acosh", (9, 22), torch.acosh),
    ("Asin", (7, 22), torch.asin),
    ("Asinh", (9, 22), torch.asinh),
    ("Atan", (7, 22), torch.atan),
    ("Atanh", (9, 22), torch.atanh),
    ("Ceil", (6, 13), torch.ceil),
    ("Cos", (7, 22), torch.cos),
    ("Cosh", (9, 22), torch.cosh),
    ("Erf", (9, 13), torch.erf),
    ("Exp", (6, 13), torch.exp),
    ("Floor", (6, 13), torch.floor),
    ("Log", (6, 13), torch.log),
    ("Neg", (6, 13), torch.neg),
    ("Reciprocal", (6, 13), torch.reciprocal),
    ("Round", (11, 22), torch.round),  # both round halves to even
    ("Sign", (9, 13), torch.sign),
    ("Sin", (7, 22), torch.sin),
    ("Sinh", (9, 22), torch.sinh),
    ("Sqrt", (6, 13), torch.sqrt),
    ("Tan", (7, 22), torch.tan),
    ("Tanh", (6, 13), torch.tanh),
)


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor(0))


for _name, _versions, _function in UNARY:
    operator(_name, *_versions)(_unary(_function))


def operands(call: Call) -> tuple[Any, Any]:
    """Both inputs of a broadcasting operator; a constant with one element as a number."""
    left, right = call.tensor(0) if not call.known(0) else None, call.tensor(1) if not call.known(1) else None
    if left is None:
        left = call.operand(0, right.ndim if right is not None else -1)
    if right is None:
        right = call.operand(1, left.ndim if not isinstance(left, int | float) else -1)
    return left, right


@operator("Add", 7, 13, 14)
def add(call: Call) -> Tensor:
    """A + B."""
    left, right = operands(call)
    return torch.add(right, left) if isinstance(left, int | float) else torch.add(left, right)


@operator("Sub", 7, 13, 14)
def sub(call: Call) -> Tensor:
    """A - B."""
    left, right = operands(call)
    return torch.rsub(right, left) if isinstance(left, int | float) else torch.sub(left, right)


@operator("Mul", 7, 13, 14)
def mul(call: Call) -> Tensor:
    """A B."""
    left, right = operands(call)
    return torch.mul(right, left) if isinstance(left, int | float) else torch.mul(left, right)


@operator("Div", 7, 13, 14)
def div(call: Call) -> Tensor:
    """A / B; integers round towards zero."""
    left = call.tensor(0)
    right = call.operand(1, left.ndim)
    return torch.div(left, right, rounding_mode=None if left.dtype.is_floating_point else "trunc")


@operator("Pow", 7, 12, 13, 15)
def power(call: Call) -> Tensor:
    """A to the power of B, in the type of A."""
    left, right = operands(call)
    result: Tensor = torch.pow(left, right)
    wanted = left.dtype if not isinstance(left, int | float) else right.dtype
    return result if result.dtype == wanted else apply(torch.ops.aten.to.dtype, result, wanted)


@operator("Mod", 10, 13)
def mod(call: Call) -> Tensor:
    """The remainder of a division, with the sign of B, or of A with fmod."""
    left, right = call.tensor(0), call.tensor(1)
    return torch.fmod(left, right) if call.attribute("fmod", 0) else torch.remainder(left, right)


@operator("Sum", 6, 8, 13)
def sum_(call: Call) -> Tensor:
    """The sum of all inputs."""
    return reduce(torch.add, _all(call))


@operator("Mean", 6, 8, 13)
def mean(call: Call) -> Tensor:
    """The mean of all inputs."""
    return torch.div(reduce(torch.add, _all(call)), len(call))


@operator("Max", 6, 8, 12, 13)
def maximum(call: Call) -> Tensor:
    """The elementwise maximum of all inputs."""
    return _extreme(call, torch.maximum, "min")


@operator("Min", 6, 8, 12, 13)
def minimum(call: Call) -> Tensor:
    """The elementwise minimum of all inputs."""
    return _extreme(call, torch.minimum, "max")


@operator("CumSum", 11, 14)
def cumulative_sum(call: Call) -> Tensor:
    """Cumulative sums along an axis."""
    x = call.tensor(0)
    axis = call.axis(int(call.number(1, "an axis")), x.ndim)
    backwards = call.attribute("reverse", 0)
    x = torch.flip(x, (axis,)) if backwards else x
    total = torch.cumsum(x, axis, dtype=x.dtype)
    total = torch.sub(total, x) if call.attribute("exclusive", 0) else total
    return torch.flip(total, (axis,)) if backwards else total


def _all(call: Call) -> list[Tensor]:
    if len(call) == 0:
        raise ModelError("has no inputs")
    return [call.tensor(position) for position in range(len(call))]


def _extreme(call: Call, function: Callable[[Tensor, Tensor], Tensor], bound: str) -> Tensor:
    if len(call) == 2 and call.known(0) != call.known(1):
        left, right = operands(call)
        if isinstance(left, int | float):
            left, right = right, left
        if isinstance(right, int | float):
            return torch.clamp(left, min=right) if bound == "min" else torch.clamp(left, max=right)
    return reduce(function, _all(call))
