"""Rules for convolutions, dense layers and batch normalisation."""

import math
from typing import Any

import torch
from torch import Tensor

from robustres.certify.graph.network import Node
from robustres.certify.graph.operation_rules import Call, NotCoveredError, Parts, rule
from robustres.certify.maps.convolution import Convolution, Padding, TransposedConvolution
from robustres.certify.maps.coordinate_maps import Selection
from robustres.certify.maps.linear_map import ChannelScale, Composition, Dense, Identity, LinearMap, Shape


@rule("conv2d", "conv1d")
def convolution(call: Call) -> Node:
    """A convolution with zero padding; a one-dimensional one as an image of height 1."""
    source, weight = call.node("input"), _weight(call, "weight")
    if len(source.shape) != weight.ndim - 1:
        raise NotCoveredError("of an input without a batch axis")
    image = _as_image(source.shape)
    stride, dilation = _two(call["stride"]), _two(call["dilation"])
    kernel = weight if weight.ndim == 4 else weight[:, :, None]
    pads = _padding(call["padding"], kernel, dilation)
    if weight.ndim == 3:  # the axis of height 1 has neither padding nor stride
        stride, dilation, pads = (1, stride[1]), (1, dilation[1]), ((0, 0), pads[1])
    inner = Convolution(kernel, image, stride, pads, dilation, call["groups"])
    return call.linear(source, reshaped(inner, source.shape, call.out_shape), shift=_bias_size(call))


@rule("conv_transpose2d", "conv_transpose2d.input")
def transposed_convolution(call: Call) -> Node:
    """The transpose of a convolution with zero padding."""
    source, weight = call.node("input"), _weight(call, "weight")
    names = ("stride", "padding", "output_padding", "dilation")
    stride, padding, output_padding, dilation = (_two(call[name]) for name in names)
    inner = TransposedConvolution(weight, source.shape, stride, padding, output_padding, dilation, call["groups"])
    return call.linear(source, inner, shift=_bias_size(call))


@rule("linear")
def dense(call: Call) -> Node:
    """x W^T + b on the last axis."""
    return _on_last_axis(call, call.node("input"), _weight(call, "weight"), shift=call.size(call.constant("bias")))


@rule("addmm")
def dense_with_bias(call: Call) -> Node:
    """beta b + alpha x W."""
    if isinstance(call["self"], Node):
        raise NotCoveredError("with a bias that depends on the input")
    weight = float(call["alpha"]) * _weight(call, "mat2").T
    return _on_last_axis(call, call.node("mat1"), weight, shift=abs(float(call["beta"])) * call.size(call["self"]))


@rule("mm", "matmul")
def matrix_product(call: Call) -> Node:
    """x W with a constant W."""
    name = "mat2" if "mat2" in call.arguments else "other"
    weight = _weight(call, name)
    if weight.ndim != 2:
        raise NotCoveredError("with a constant that is not a matrix")
    return _on_last_axis(call, call.node("self"), weight.T)


@rule("batch_norm", "_native_batch_norm_legit_no_training")
def batch_norm(call: Call) -> Node | Parts:
    """Evaluation mode: each channel times gamma / sqrt(variance + eps)."""
    source = call.node("input")
    if call.arguments.get("training") or call.arguments.get("running_var") is None:
        raise NotCoveredError("by the statistics of the batch")
    variance: Tensor = call.constant("running_var").to(torch.float64)
    gamma = call.constant("weight")
    scale = 1 / torch.sqrt(variance + call["eps"])
    if gamma is not None:
        scale = scale * gamma
    if not bool(torch.isfinite(scale).all()):
        raise NotCoveredError("with a scale that is not finite")
    constants = scale * call.constant("running_mean")
    per_pixel = math.sqrt(math.prod(source.shape[1:]))
    shift = per_pixel * float(constants.abs().square().sum().sqrt())
    if call.constant("bias") is not None:
        shift += per_pixel * float(call.constant("bias").to(torch.float64).square().sum().sqrt())
    node = call.linear(source, ChannelScale(scale, source.shape), shift=shift)
    return Parts((node,)) if isinstance(call.origin.meta["val"], tuple | list) else node


def _bias_size(call: Call) -> float:
    """The norm of a convolution's bias over the whole image."""
    bias = call.constant("bias")
    if bias is None:
        return 0.0
    pixels = math.prod(call.out_shape[1:])
    return math.sqrt(pixels) * float(bias.to(torch.float64).square().sum().sqrt())


def _weight(call: Call, name: str) -> Tensor:
    weight = call.constant(name)
    if not isinstance(weight, Tensor):
        raise NotCoveredError(f"without a constant {name}")
    if not bool(torch.isfinite(weight).all()):
        raise NotCoveredError(f"with a {name} that is not finite")
    return weight.to(torch.float64)


def _two(value: Any) -> tuple[int, int]:
    """One or two numbers as two."""
    values = [int(number) for number in value] if isinstance(value, list | tuple) else [int(value)]
    return values[0], values[-1]


def _padding(value: Any, kernel: Tensor, dilation: tuple[int, int]) -> Padding:
    """Zeros before and after along each axis, from numbers, "same" or "valid"."""
    if value == "same":
        totals = [d * (k - 1) for k, d in zip(kernel.shape[2:], dilation, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    vertical, horizontal = (0, 0) if value == "valid" else _two(value)
    return (vertical, vertical), (horizontal, horizontal)


def _as_image(shape: Shape) -> Shape:
    return shape if len(shape) == 3 else (shape[0], 1, shape[1])


def reshaped(inner: LinearMap, in_shape: Shape, out_shape: Shape) -> LinearMap:
    """`inner` between other shapes of the same sizes."""
    parts: list[LinearMap] = [inner]
    if inner.in_shape != in_shape:
        parts.insert(0, Identity(in_shape, inner.in_shape))
    if inner.out_shape != out_shape:
        parts.append(Identity(inner.out_shape, out_shape))
    return parts[0] if len(parts) == 1 else Composition(parts)


def _on_last_axis(call: Call, source: Node, weight: Tensor, *, shift: float = 0.0) -> Node:
    """(..., in) to (..., out): a matrix, or a 1 x 1 convolution over the leading axes."""
    *leading, width = source.shape
    if weight.ndim != 2 or weight.shape[1] != width:
        raise NotCoveredError(f"of shape {tuple(weight.shape)} on inputs of shape {source.shape}")
    if not leading:
        return call.linear(source, Dense(weight), shift=shift)
    count = int(torch.Size(leading).numel())
    places = torch.arange(count * width, device=weight.device).reshape(count, width)
    back = torch.arange(count * len(weight), device=weight.device).reshape(len(weight), count)
    return call.linear(
        source,
        Composition(
            [
                Selection(places.T.flatten(), source.shape, (width, count, 1)),
                Convolution(weight[:, :, None, None], (width, count, 1)),
                Selection(back.T.flatten(), (len(weight), count, 1), (*leading, len(weight))),
            ]
        ),
        shift=shift,
    )
