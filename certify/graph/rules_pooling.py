"""Rules for pooling and for means and sums over axes."""

import math
from collections.abc import Sequence

import torch

from robustres.certify.graph.capture import device_of
from robustres.certify.graph.network import Node, Opaque
from robustres.certify.graph.operation_rules import Call, NotCoveredError, Parts, rule
from robustres.certify.graph.rules_linear import reshaped
from robustres.certify.maps.convolution import average_pool
from robustres.certify.maps.coordinate_maps import Selection
from robustres.certify.maps.linear_map import Composition, Identity, LinearMap, Scaled, Separable, Shape
from robustres.certify.proof.bound import Bound
from robustres.numerics import rounded_up


@rule("avg_pool2d", "avg_pool1d")
def averaged(call: Call) -> Node:
    """Average pooling over windows."""
    source = call.node("self")
    flat = "avg_pool1d" in str(call.origin.target)
    kernel, stride, padding = (_pair(call[name], flat) for name in ("kernel_size", "stride", "padding"))
    assert kernel is not None
    if flat:
        padding = (0, padding[1] if padding else 0)
    inner = average_pool(
        _image(source.shape),
        kernel,
        stride,
        padding or (0, 0),
        ceil_mode=call["ceil_mode"],
        count_include_pad=call["count_include_pad"],
        divisor=call.arguments.get("divisor_override"),
        device=device_of(call.captured.module),
    )
    return call.linear(source, reshaped(inner, source.shape, call.out_shape))


@rule("adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool1d")
def adaptively_averaged(call: Call) -> Node:
    """Average pooling to a given size."""
    source = call.node("self")
    image = _image(source.shape)
    target = _image(call.out_shape)[1:]
    device = device_of(call.captured.module)
    if all(side % count == 0 for side, count in zip(image[1:], target, strict=True)):
        window = (image[1] // target[0], image[2] // target[1])
        inner = average_pool(image, window, device=device)
    else:
        rows, columns = (
            _adaptive_matrix(side, count).to(device) for side, count in zip(image[1:], target, strict=True)
        )
        inner = Separable(rows, columns, image[0])
    return call.linear(source, reshaped(inner, source.shape, call.out_shape))


@rule("mean.dim", "mean", "sum.dim_IntList", "sum")
def reduced(call: Call) -> Node:
    """Mean or sum over some axes of every sample."""
    source = call.node("self")
    rank = len(source.shape) + 1
    given = call.arguments.get("dim")
    axes = [axis % rank for axis in given] if given else list(range(rank))
    if 0 in axes:
        raise NotCoveredError("over the batch")
    kept = [axis for axis in range(1, rank) if axis not in axes]
    count = math.prod(source.shape[axis - 1] for axis in axes)
    place = torch.arange(math.prod(source.shape), device=device_of(call.captured.module)).reshape(source.shape)
    index = place.permute([axis - 1 for axis in (*kept, *sorted(axes))]).flatten()
    grouped: Shape = (len(index) // count, 1, count)
    parts: list[LinearMap] = [
        Identity(source.shape, grouped)
        if torch.equal(index, place.flatten())
        else Selection(index, source.shape, grouped),
        average_pool(grouped, (1, count), device=place.device),
        Identity((grouped[0], 1, 1), call.out_shape),
    ]
    if "sum" in str(call.origin.target):
        parts.append(Scaled(float(count), Identity(call.out_shape)))
    return call.linear(source, Composition(parts))


@rule("max_pool2d", "max_pool1d", "max_pool2d_with_indices")
def max_pooled(call: Call) -> Node | Parts:
    """Maximum over windows: sqrt(the largest number of windows that one pixel is in).

    |max a - max b| <= |a - b| in each window, and the squares of a pixel count once for each of its windows.
    """
    source = call.node("self")
    flat = "max_pool1d" in str(call.origin.target)
    names = ("kernel_size", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (_pair(call[name], flat) for name in names)
    assert kernel is not None
    value = call.origin.meta["val"]
    out_shape = tuple(value[0].shape[1:]) if isinstance(value, list | tuple) else call.out_shape
    image, target = _image(source.shape), _image(out_shape)
    padding = (0, padding[1]) if flat and padding else padding
    axes = list(
        zip(image[1:], target[1:], kernel, stride or kernel, padding or (0, 0), dilation or (1, 1), strict=True)
    )
    if any(has_empty_window(*axis) for axis in axes):
        raise NotCoveredError("with a window that holds no pixel, of which torch leaves the value open")
    overlaps = [windows_per_pixel(*axis) for axis in axes]
    constant = rounded_up(math.sqrt(overlaps[0] * overlaps[1]), 1) if overlaps != [1, 1] else 1.0
    node = call.make(Opaque("max pooling", Bound(0.0, constant, "windows per pixel"), 1.0), source, shape=out_shape)
    return Parts((node,)) if isinstance(value, list | tuple) else node


@rule("adaptive_max_pool2d", "adaptive_max_pool1d")
def adaptively_max_pooled(call: Call) -> Parts:
    """Maximum over adaptive windows, covered where they do not overlap."""
    source = call.node("self")
    out_shape = tuple(call.origin.meta["val"][0].shape[1:])
    if any(side % count for side, count in zip(source.shape[1:], out_shape[1:], strict=True)):
        raise NotCoveredError("with windows that overlap")
    return Parts((call.make(Opaque("max pooling", Bound(0.0, 1.0, "disjoint windows"), 1.0), source, shape=out_shape),))


def windows_per_pixel(side: int, count: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """The largest number of windows along one axis that hold the same pixel.

    >>> windows_per_pixel(8, 4, 3, 2, 1, 1), windows_per_pixel(8, 4, 2, 2, 0, 1)
    (2, 1)
    """
    members = torch.zeros(side, dtype=torch.int64)
    for window in range(count):
        for tap in range(kernel):
            pixel = window * stride - padding + tap * dilation
            if 0 <= pixel < side:
                members[pixel] += 1
    return int(members.max())


def has_empty_window(side: int, count: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether all taps of some window along one axis fall into the padding.

    >>> has_empty_window(1, 1, 2, 1, 1, 2), has_empty_window(2, 2, 2, 1, 1, 2)
    (True, False)
    """
    firsts = (window * stride - padding for window in range(count))
    return any(not any(0 <= first + tap * dilation < side for tap in range(kernel)) for first in firsts)


def _adaptive_matrix(side: int, count: int) -> torch.Tensor:
    matrix = torch.zeros(count, side, dtype=torch.float64)
    for row in range(count):
        start, stop = row * side // count, -(-(row + 1) * side // count)
        matrix[row, start:stop] = 1 / (stop - start)
    return matrix


def _image(shape: Shape) -> Shape:
    if len(shape) not in (2, 3):
        raise NotCoveredError(f"on inputs of shape {shape}")
    return shape if len(shape) == 3 else (shape[0], 1, shape[1])


def _pair(value: Sequence[int] | int | None, flat: bool) -> tuple[int, int] | None:
    """(vertical, horizontal), or None where torch's default stands; one-dimensional windows have height 1."""
    numbers = [value] if isinstance(value, int) else list(value or [])
    if not numbers:
        return None
    return (1 if flat else numbers[0], numbers[-1])
