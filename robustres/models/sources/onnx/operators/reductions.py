"""Sums, means, extremes and norms over axes."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.registry import operator

Axes = tuple[int, ...]
Reduction = Callable[[Tensor, Axes, bool], Tensor]


def _mean(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    if x.dtype.is_floating_point:
        return torch.mean(x, axes, keepdim=keep)
    ones = torch.sum(torch.ones_like(x), axes, keepdim=keep, dtype=x.dtype)
    return torch.div(torch.sum(x, axes, keepdim=keep, dtype=x.dtype), ones, rounding_mode="trunc")


def _prod(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def _sum(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _max(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return torch.amax(x, axes, keepdim=keep)


def _min(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    return torch.amin(x, axes, keepdim=keep)


REDUCTIONS: tuple[tuple[str, tuple[int, ...], Reduction], ...] = (
    ("ReduceSum", (1, 11, 13), _sum),
    ("ReduceMean", (1, 11, 13, 18), _mean),
    ("ReduceMax", (1, 11, 12, 13, 18, 20), _max),
    ("ReduceMin", (1, 11, 12, 13, 18, 20), _min),
    ("ReduceProd", (1, 11, 13, 18), _prod),
    ("ReduceL1", (1, 11, 13, 18), lambda x, axes, keep: _sum(torch.abs(x), axes, keep)),
    ("ReduceL2", (1, 11, 13, 18), lambda x, axes, keep: torch.sqrt(_sum(torch.mul(x, x), axes, keep))),
    ("ReduceLogSum", (1, 11, 13, 18), lambda x, axes, keep: torch.log(_sum(x, axes, keep))),
    ("ReduceLogSumExp", (1, 11, 13, 18), lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    ("ReduceSumSquare", (1, 11, 13, 18), lambda x, axes, keep: _sum(torch.mul(x, x), axes, keep)),
)
# What is left of a reduction of each number alone.
OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceLogSum": torch.log,
    "ReduceSumSquare": torch.square,
}


def _reduced(name: str, function: Reduction) -> Callable[[Call], Tensor]:
    from_input = 13 if name == "ReduceSum" else 18  # operator set from which the axes are an input

    def reduce(call: Call) -> Tensor:
        x = call.tensor(0)
        if call.version < from_input:
            given = call.ints_attribute("axes")
        else:
            given = call.static_ints(1, "axes") if call.given(1) else None
        if not given and call.version >= from_input and call.attribute("noop_with_empty_axes", 0):
            return OF_ONE.get(name, torch.clone)(x)
        axes = tuple(dict.fromkeys(call.axis(axis, x.ndim) for axis in given or range(x.ndim)))
        if x.ndim and any(x.shape[axis] == 0 for axis in axes) and name in {"ReduceMax", "ReduceMin"}:
            raise ModelError("takes the maximum or minimum of no numbers")
        return function(x, axes, bool(call.attribute("keepdims", 1)))

    return reduce


for _name, _versions, _function in REDUCTIONS:
    operator(_name, *_versions)(_reduced(_name, _function))
