"""Rules for pooling, resizing, and means and sums over axes."""

import math

import torch

from robustres.certify.graph.by_trying import by_trying
from robustres.certify.graph.call import Call, NotCoveredError, numbers
from robustres.certify.graph.capture import BATCH
from robustres.certify.graph.network import Node
from robustres.certify.graph.registry import rule
from robustres.certify.graph.rules_linear import image_of, reshaped
from robustres.certify.maps.convolution import along_axis, average_pool
from robustres.certify.maps.coordinate_maps import rearranged
from robustres.certify.maps.linear_map import Composition, Identity, LinearMap, Scaled, Shape
from robustres.certify.maps.nonlinear import MaxPool


@rule("avg_pool2d", "avg_pool1d")
def averaged(call: Call) -> Node:
    """Average pooling over windows."""
    source = call.node("self")
    kernel, stride, padding = (numbers(call[name], 2) for name in ("kernel_size", "stride", "padding"))
    if call.name == "avg_pool1d":
        kernel, stride, padding = [1, kernel[1]], [1, *stride[1:]], [0, *(padding[1:] or [0])]
    image, divisor = image_of(source.shape), call.arguments.get("divisor_override")
    if any(size > side + 2 * pad for size, side, pad in zip(kernel, image[1:], padding or (0, 0), strict=True)):
        return along_each_axis(call)  # with `ceil_mode`, a window may be larger than the padded image
    inner = average_pool(
        image, kernel, stride if len(stride) == 2 else None, padding or 0, divisor=divisor, device=call.device
    )
    even = call["count_include_pad"] or divisor or not any(padding)
    if even and inner.out_shape == image_of(call.out_shape):
        return call.linear(source, reshaped(inner, source.shape, call.out_shape))
    return along_each_axis(call)


@rule("adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool1d")
def adaptively_averaged(call: Call) -> Node:
    """Average pooling to a given size."""
    source = call.node("self")
    image, target = image_of(source.shape), image_of(call.out_shape)[1:]
    if any(side % count for side, count in zip(image[1:], target, strict=True)):
        return along_each_axis(call)
    inner = average_pool(image, (image[1] // target[0], image[2] // target[1]), device=call.device)
    return call.linear(source, reshaped(inner, source.shape, call.out_shape))


@rule(
    "avg_pool3d", "adaptive_avg_pool3d", "_adaptive_avg_pool3d", "upsample_linear1d", "upsample_trilinear3d", "col2im"
)
def by_matrix(call: Call) -> Node:
    """Small linear operations, whose matrix is found by applying them to unit vectors."""
    return by_trying(call, call.only_input)


def along_each_axis(call: Call) -> Node:
    """Resizing and uneven pooling: a matrix along each axis of the images, the same for all channels.

    Of images that are constant along the other axes, the operation gives each matrix times the row sums of the others.
    All are read off where an image of ones gives the largest value, which is divided out.
    """
    source = call.only_input
    sides, device = source.shape[1:], call.device

    def answer(images: torch.Tensor) -> torch.Tensor:
        batch = images.expand(1, -1, *sides)
        batch = torch.cat([batch, batch.new_zeros(BATCH - 1, *batch.shape[1:])])
        found: torch.Tensor = call.evaluate({source: batch})
        return found[0]

    whole = answer(torch.ones(1, *[1] * len(sides), dtype=torch.float64, device=device))[0]
    # For each axis, the place of the largest value among those of the other axes.
    beside = [int(whole.movedim(axis, 0).reshape(whole.shape[axis], -1).amax(0).argmax()) for axis in range(len(sides))]
    parts: list[LinearMap] = []
    shape = source.shape
    for axis in reversed(range(len(sides))):
        lines = torch.eye(sides[axis], dtype=torch.float64, device=device)
        images = lines.reshape(-1, *[sides[axis] if k == axis else 1 for k in range(len(sides))])
        found = answer(images).movedim(1 + axis, 1).reshape(sides[axis], whole.shape[axis], -1)
        matrix = found[:, :, beside[axis]].T / (whole.max() if parts else 1.0)
        parts.append(along_axis(matrix.contiguous(), shape, 1 + axis, seen=64))
        shape = parts[-1].out_shape
    return call.linear(source, Composition(parts))


rule("upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa")(along_each_axis)


@rule("mean.dim", "mean", "sum.dim_IntList", "sum")
def reduced(call: Call) -> Node:
    """Mean or sum over some axes of every sample."""
    source = call.node("self")
    axes = sorted(call.axes(source, call.arguments.get("dim")))
    kept = [axis for axis in range(len(source.shape)) if axis not in axes]
    count = math.prod(source.shape[axis] for axis in axes)
    place = torch.arange(math.prod(source.shape), device=call.device).reshape(source.shape)
    grouped: Shape = (place.numel() // count, 1, count)
    parts: list[LinearMap] = [
        rearranged(place.permute([*kept, *axes]).reshape(grouped), source.shape),
        average_pool(grouped, (1, count), device=place.device),
        Identity((grouped[0], 1, 1), call.out_shape),
    ]
    if call.name == "sum":
        parts.append(Scaled(float(count), Identity(call.out_shape)))
    return call.linear(source, Composition(parts))


@rule("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices")
def max_pooled(call: Call) -> Node:
    """Maximum over windows."""
    source = call.node("self")
    rank = int(call.name.split("pool")[1][0])
    kernel, stride, padding, dilation = (
        numbers(call.arguments.get(name), rank) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    sides, counts = source.shape[-rank:], call.out_shape[-rank:]
    axes = zip(sides, counts, kernel, stride or kernel, padding or [0] * rank, dilation or [1] * rank, strict=True)
    return _max_pooled(call, source, [windows(*axis) for axis in axes])


@rule("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptively_max_pooled(call: Call) -> Node:
    """Maximum over a given number of windows."""
    source = call.node("self")
    rank = int(call.name.split("pool")[1][0])
    axes = zip(source.shape[-rank:], call.out_shape[-rank:], strict=True)
    return _max_pooled(call, source, [adaptive_windows(*axis) for axis in axes])


def _max_pooled(call: Call, source: Node, axes: list[torch.Tensor]) -> Node:
    if any(bool((pixels < 0).all(1).any()) for pixels in axes):
        raise NotCoveredError("with a window that contains no pixel, for which torch does not define the value")
    return call.make(MaxPool(tuple(axes)), source)


def windows(side: int, count: int, kernel: int, stride: int, padding: int, dilation: int) -> torch.Tensor:
    """(count, kernel): the pixels of each window along one axis, -1 for padding.

    >>> windows(3, 2, 2, 2, 1, 1).tolist()
    [[-1, 0], [1, 2]]
    """
    pixels = torch.arange(count)[:, None] * stride - padding + torch.arange(kernel) * dilation
    return torch.where((pixels >= 0) & (pixels < side), pixels, -1)


def adaptive_windows(side: int, count: int) -> torch.Tensor:
    """(count, taps): the pixels of each window of adaptive pooling along one axis, -1 where it has fewer.

    >>> adaptive_windows(3, 2).tolist()
    [[0, 1], [1, 2]]
    """
    starts = torch.arange(count) * side // count
    stops = -((torch.arange(1, count + 1) * -side) // count)
    pixels = starts[:, None] + torch.arange(int((stops - starts).max()))
    return torch.where(pixels < stops[:, None], pixels, -1)
