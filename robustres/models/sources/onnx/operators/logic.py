"""Comparisons, logic and selection."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.operators.arithmetic import operands
from robustres.models.sources.onnx.registry import operator
from robustres.models.sources.onnx.traced import Known

# Name, versions, function, and the function with its operands exchanged.
COMPARISONS: tuple[tuple[str, tuple[int, ...], Callable[..., Tensor], Callable[..., Tensor]], ...] = (
    ("Equal", (7, 11, 13, 19), torch.eq, torch.eq),
    ("Greater", (7, 9, 13), torch.gt, torch.lt),
    ("GreaterOrEqual", (12, 16), torch.ge, torch.le),
    ("Less", (7, 9, 13), torch.lt, torch.gt),
    ("LessOrEqual", (12, 16), torch.le, torch.ge),
)
LOGIC: tuple[tuple[str, tuple[int, ...], Callable[[Tensor, Tensor], Tensor]], ...] = (
    ("And", (7,), torch.logical_and),
    ("Or", (7,), torch.logical_or),
    ("Xor", (7,), torch.logical_xor),
)


def _comparison(function: Callable[..., Tensor], exchanged: Callable[..., Tensor]) -> Callable[[Call], Tensor]:
    def compare(call: Call) -> Tensor:
        left, right = operands(call)
        return exchanged(right, left) if isinstance(left, int | float) else function(left, right)

    return compare


def _logical(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call], Tensor]:
    return lambda call: function(call.tensor(0), call.tensor(1))


for _name, _versions, _function, _exchanged in COMPARISONS:
    operator(_name, *_versions)(_comparison(_function, _exchanged))
for _name, _versions, _both in LOGIC:
    operator(_name, *_versions)(_logical(_both))


@operator("Not", 1)
def not_(call: Call) -> Tensor:
    """Logical negation."""
    return torch.logical_not(call.tensor(0))


@operator("IsNaN", 9, 13, 20)
def is_nan(call: Call) -> Tensor:
    """Mask of NaN."""
    return torch.isnan(call.tensor(0))


@operator("IsInf", 10, 20)
def is_infinite(call: Call) -> Tensor:
    """Mask of infinite numbers of the requested signs."""
    x = call.tensor(0)
    asked = (("detect_negative", torch.isneginf), ("detect_positive", torch.isposinf))
    signs = [function for name, function in asked if call.attribute(name, 1)]
    if not signs:
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isinf(x) if len(signs) == 2 else signs[0](x)


@operator("Where", 9, 16)
def where(call: Call) -> Tensor | Known:
    """The second input where the first is true, else the third."""
    return torch.where(call.tensor(0), call.tensor(1), call.tensor(2))


@operator("ArgMax", 1, 11, 12, 13)
def arg_max(call: Call) -> Tensor:
    """Position of the largest number along an axis."""
    return _place(call, torch.argmax)


@operator("ArgMin", 1, 11, 12, 13)
def arg_min(call: Call) -> Tensor:
    """Position of the smallest number along an axis."""
    return _place(call, torch.argmin)


@operator("TopK", 1, 10, 11, 24)
def top_k(call: Call) -> tuple[Tensor, Tensor]:
    """The largest or smallest k numbers along an axis and their positions, in order."""
    x = call.tensor(0)
    count = call.attribute("k", 0) if call.version == 1 else int(call.number(1, "a count"))
    axis = call.axis(call.attribute("axis", -1), x.ndim)
    side = x.shape[axis]
    if not isinstance(side, int) or not 0 <= count <= side:
        raise ModelError(f"takes {count} of an axis of {side if isinstance(side, int) else 'images'}")
    # Equal numbers keep their order, which torch.topk does not guarantee.
    values, places = torch.sort(x, stable=True, dim=axis, descending=bool(call.attribute("largest", 1)))
    return torch.narrow(values, axis, 0, count), torch.narrow(places, axis, 0, count)


@operator("Trilu", 14)
def triangle(call: Call) -> Tensor:
    """The upper or lower triangle of matrices."""
    offset = int(call.number(1, "a diagonal")) if call.given(1) else 0
    if abs(offset) > 2**31:
        raise ModelError(f"has the diagonal {offset}")
    return (torch.triu if call.attribute("upper", 1) else torch.tril)(call.tensor(0), offset)


def _place(call: Call, function: Callable[..., Tensor]) -> Tensor:
    x = call.tensor(0)
    axis = call.axis(call.attribute("axis", 0), x.ndim)
    keep = bool(call.attribute("keepdims", 1))
    if not call.attribute("select_last_index", 0):
        return function(x, axis, keepdim=keep)
    last = x.shape[axis] - 1
    return torch.rsub(function(torch.flip(x, (axis,)), axis, keepdim=keep), last)
