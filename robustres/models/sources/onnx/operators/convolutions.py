"""Convolutions and their transposes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.operators.windows import Windows, padded, static_sides
from robustres.models.sources.onnx.registry import operator

LAYERS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
FUNCTIONS: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@operator("Conv", 1, 11, 22)
def convolution(call: Call) -> Tensor:
    """A convolution with zero padding."""
    layered = call.place is None and call.known(1) and (not call.given(2) or call.known(2))
    x, weight = call.tensor(0), call.constant(1, "a weight") if layered else call.tensor(1)
    rank = x.ndim - 2
    if rank not in LAYERS or weight.ndim != x.ndim:
        raise ModelError(f"convolves {x.ndim} axes with {weight.ndim}; images of 1 to 3 axes are covered")
    windows = Windows.of(call, static_sides(x), kernel=tuple(weight.shape[2:]))
    groups = call.attribute("group", 1)
    symmetric = all(before == after for before, after in windows.pads)
    padding = tuple(before for before, _ in windows.pads) if symmetric else (0,) * rank
    x = x if symmetric else padded(x, windows.pads, 0.0)
    if not layered:
        bias = call.tensor(2) if call.given(2) else None
        result: Tensor = FUNCTIONS[rank](x, weight, bias, windows.strides, padding, windows.dilations, groups)
        return result
    layer = LAYERS[rank](
        weight.shape[1] * groups, weight.shape[0], windows.kernel, windows.strides, padding, windows.dilations, groups,
        bias=call.given(2), device="meta",
    )  # fmt: skip
    return _applied(call, layer, weight, x)


@operator("ConvTranspose", 1, 11, 22)
def transposed_convolution(call: Call) -> Tensor:
    """The transpose of a convolution, cut to the size that is asked for."""
    x, kernel = call.tensor(0), call.constant(1, "a weight")
    rank = x.ndim - 2
    if rank not in TRANSPOSED or kernel.ndim != x.ndim:
        raise ModelError(f"convolves {x.ndim} axes with {kernel.ndim}; images of 1 to 3 axes are covered")
    sides = static_sides(x)
    windows = Windows.of(call, sides, kernel=tuple(kernel.shape[2:]), strict=False)
    extra = call.ints_attribute("output_padding") or [0] * rank
    wanted = call.ints_attribute("output_shape")
    full = [
        stride * (side - 1) + more + reach
        for side, stride, more, reach in zip(sides, windows.strides, extra, windows.reaches, strict=True)
    ]
    pads = list(windows.pads)
    auto = call.attribute("auto_pad", "NOTSET")
    if wanted is None and auto.startswith("SAME"):
        wanted = [side * stride for side, stride in zip(sides, windows.strides, strict=True)]
    if wanted is not None:
        totals = [whole - out for whole, out in zip(full, wanted[-rank:], strict=True)]
        pads = [(t // 2, t - t // 2) if auto == "SAME_UPPER" else (t - t // 2, t // 2) for t in totals]
    same = all(before == after >= 0 for before, after in pads)
    groups = call.attribute("group", 1)
    layer = TRANSPOSED[rank](
        kernel.shape[0], kernel.shape[1] * groups, windows.kernel, windows.strides,
        tuple(before for before, _ in pads) if same else 0, tuple(extra), groups, call.given(2), windows.dilations,
        device="meta",
    )  # fmt: skip
    y = _applied(call, layer, kernel, x)
    for axis, ((before, after), whole) in enumerate(zip(pads, full, strict=True)):
        if not same:
            if before < 0 or after < 0:
                raise ModelError(
                    f"asks for an output larger than a transposed convolution gives, by {(-before, -after)}"
                )
            y = torch.narrow(y, 2 + axis, before, whole - before - after)
    return y


def _applied(call: Call, layer: Any, kernel: Tensor, x: Tensor) -> Tensor:
    layer.weight = nn.Parameter(kernel)
    if call.given(2):
        layer.bias = nn.Parameter(call.constant(2, "a bias"))
    return call.module(layer, on=x)
