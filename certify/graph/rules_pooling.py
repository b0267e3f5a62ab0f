"""Rules for pooling and for means and sums over axes."""

import math

import torch

from robustres.certify.graph.by_trying import by_trying
from robustres.certify.graph.call import Call, NotCoveredError, numbers
from robustres.certify.graph.capture import BATCH
from robustres.certify.graph.network import Node
from robustres.certify.graph.operation_rules import rule
from robustres.certify.graph.rules_linear import image_of, reshaped
from robustres.certify.maps.convolution import average_pool, separable
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
    inner = average_pool(
        image_of(source.shape),
        kernel,
        stride[:2] if len(stride) == 2 else None,
        padding or 0,
        ceil_mode=call["ceil_mode"],
        count_include_pad=call["count_include_pad"],
        divisor=call.arguments.get("divisor_override"),
        device=call.device,
    )
    return call.linear(source, reshaped(inner, source.shape, call.out_shape))


@rule("adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool1d")
def adaptively_averaged(call: Call) -> Node:
    """Average pooling to a given size."""
    source = call.node("self")
    image, target = image_of(source.shape), image_of(call.out_shape)[1:]
    if all(side % count == 0 for side, count in zip(image[1:], target, strict=True)):
        window = (image[1] // target[0], image[2] // target[1])
        inner: LinearMap = average_pool(image, window, device=call.device)
    else:
        sides = zip(image[1:], target, strict=True)
        rows, columns = (_adaptive_matrix(side, count).to(call.device) for side, count in sides)
        inner = separable(rows, columns, image[0], seen=3)
    return call.linear(source, reshaped(inner, source.shape, call.out_shape))


@rule(
    "avg_pool3d", "adaptive_avg_pool3d", "_adaptive_avg_pool3d", "upsample_linear1d", "upsample_trilinear3d", "col2im"
)
def by_matrix(call: Call) -> Node:
    """Small linear operations, whose matrix is found by applying them to unit vectors."""
    return by_trying(call, call.only_input)


@rule("upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa")
def resized(call: Call) -> Node:
    """Resizing by weights along rows and columns, found by applying it to images that are constant along the other
    axis.

    Along the other axis the weights add up to 1.
    """
    source = call.only_input
    channels, height, width = source.shape
    device = call.device

    def weights(image: torch.Tensor, axis: int) -> torch.Tensor:
        batch = torch.cat([image[None], torch.zeros(BATCH - 1, *image.shape, dtype=torch.float64, device=device)])
        answer: torch.Tensor = call.evaluate({source: batch})
        return answer[0].select(axis, 0).T.contiguous()

    rows = torch.eye(height, dtype=torch.float64, device=device)[:, :, None].expand(-1, -1, width)
    columns = torch.eye(width, dtype=torch.float64, device=device)[:, None, :].expand(-1, height, -1)
    return call.linear(source, separable(weights(rows, 2), weights(columns, 1), channels, seen=64))


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


def _adaptive_matrix(side: int, count: int) -> torch.Tensor:
    matrix = torch.zeros(count, side, dtype=torch.float64)
    for row, pixels in enumerate(adaptive_windows(side, count)):
        members = pixels[pixels >= 0]
        matrix[row, members] = 1 / len(members)
    return matrix
