"""Pooling over windows and over whole images."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.operators.windows import Windows, padded, static_sides
from robustres.models.sources.onnx.registry import operator

Pooling = Callable[..., Tensor]
MAXIMA: dict[int, Pooling] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
MEANS: dict[int, Pooling] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
CONVOLUTIONS: dict[int, Pooling] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@operator("MaxPool", 1, 8, 10, 11, 12, 22)
def max_pool(call: Call) -> Tensor:
    """The largest number in each window."""
    call.only_output()
    x, windows, ceil_mode = _windows(call)
    pads = windows.pads
    if not _as_torch(windows):
        x = padded(x, pads, -math.inf if x.dtype.is_floating_point else torch.iinfo(x.dtype).min)
        pads = ((0, 0),) * len(pads)
    return MAXIMA[len(pads)](
        x,
        kernel_size=windows.kernel,
        stride=windows.strides,
        padding=tuple(before for before, _ in pads),
        dilation=windows.dilations,
        ceil_mode=ceil_mode,
    )


@operator("AveragePool", 7, 10, 11, 19, 22)
def average_pool(call: Call) -> Tensor:
    """The mean of each window; padding counts only if the node says so."""
    x, windows, ceil_mode = _windows(call)
    counted = bool(call.attribute("count_include_pad", 0))
    if _as_torch(windows) and set(windows.dilations) == {1}:
        return _mean(x, windows, ceil_mode=ceil_mode, counted=counted)
    sides = static_sides(x)
    rows = torch.ones(1, 1, *sides, dtype=x.dtype, device="meta" if call.shapes_only else "cpu")
    rows = padded(rows, windows.pads, 1.0 if counted else 0.0)
    x, bare = padded(x, windows.pads, 0.0), replace(windows, pads=((0, 0),) * len(sides))
    return torch.div(_sum(call, x, bare, ceil_mode=ceil_mode), _sum(call, rows, bare, ceil_mode=ceil_mode))


@operator("LpPool", 2, 11, 18, 22)
def lp_pool(call: Call) -> Tensor:
    """The p-norm of each window."""
    x, windows, ceil_mode = _windows(call)
    p = call.attribute("p", 2)
    if p < 1:
        raise ModelError(f"takes the norm {p}; only 1 and larger are defined")
    powers = padded(torch.pow(torch.abs(x), p), windows.pads, 0.0)
    bare = replace(windows, pads=((0, 0),) * len(windows.pads))
    return torch.pow(_sum(call, powers, bare, ceil_mode=ceil_mode), 1 / p)


@operator("GlobalAveragePool", 1, 22)
def global_average_pool(call: Call) -> Tensor:
    """The mean of each channel."""
    x = call.tensor(0)
    return torch.mean(x, tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool", 1, 22)
def global_max_pool(call: Call) -> Tensor:
    """The largest number of each channel."""
    x = call.tensor(0)
    return torch.amax(x, tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool", 2, 22)
def global_lp_pool(call: Call) -> Tensor:
    """The p-norm of each channel."""
    x = call.tensor(0)
    norm: Tensor = torch.norm(x, float(call.attribute("p", 2)), tuple(range(2, x.ndim)), keepdim=True)
    return norm


def _windows(call: Call) -> tuple[Tensor, Windows, bool]:
    """The image, its windows, and whether the last window may extend beyond the image."""
    x = call.tensor(0)
    sides = static_sides(x)
    if len(sides) not in MAXIMA:
        raise ModelError(f"pools over {len(sides)} axes; images of 1 to 3 axes are covered")
    auto = call.attribute("auto_pad", "NOTSET")
    ceil_mode = bool(call.attribute("ceil_mode", 0)) and auto not in {"SAME_UPPER", "SAME_LOWER"}
    return x, Windows.of(call, sides), ceil_mode


def _as_torch(windows: Windows) -> bool:
    """Whether torch's own pooling supports this padding."""
    borders = zip(windows.pads, windows.kernel, strict=True)
    return all(before == after and 2 * before <= size for (before, after), size in borders)


def _mean(x: Tensor, windows: Windows, *, ceil_mode: bool, counted: bool) -> Tensor:
    """Mean over windows without dilation, with padding that torch supports."""
    return MEANS[len(windows.kernel)](
        x,
        kernel_size=windows.kernel,
        stride=windows.strides,
        padding=tuple(before for before, _ in windows.pads),
        ceil_mode=ceil_mode,
        count_include_pad=counted,
    )


def _sum(call: Call, x: Tensor, windows: Windows, *, ceil_mode: bool) -> Tensor:
    """The sum of each window without padding; the last window may extend beyond the image."""
    rank = len(windows.kernel)
    if ceil_mode:
        x = padded(x, tuple((0, missing) for missing in _missing(static_sides(x), windows)), 0.0)
    channels = x.shape[1]
    if not isinstance(channels, int):
        raise ModelError("slides windows over the batch axis")
    ones = torch.ones(channels, 1, *windows.kernel, dtype=x.dtype, device="meta" if call.shapes_only else "cpu")
    return CONVOLUTIONS[rank](x, ones, None, windows.strides, 0, windows.dilations, channels)


def _missing(sides: tuple[int, ...], windows: Windows) -> list[int]:
    """How far the last window, starting inside, extends beyond each axis."""
    found = []
    for side, stride, reach in zip(sides, windows.strides, windows.reaches, strict=True):
        count = -(-(side - reach) // stride) + 1
        if (count - 1) * stride >= side:
            count -= 1
        found.append(max((count - 1) * stride + reach - side, 0))
    return found
