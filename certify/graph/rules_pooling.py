"""Rules for pooling and for means and sums over axes."""

import math
from collections.abc import Sequence

import torch

from robustres.certify.graph.by_trying import by_trying
from robustres.certify.graph.call import Call, NotCoveredError, Parts
from robustres.certify.graph.capture import BATCH, device_of
from robustres.certify.graph.network import Node
from robustres.certify.graph.operation_rules import rule
from robustres.certify.graph.rules_linear import reshaped
from robustres.certify.maps.convolution import average_pool
from robustres.certify.maps.coordinate_maps import Selection
from robustres.certify.maps.linear_map import Composition, Identity, LinearMap, Scaled, Separable, Shape
from robustres.certify.maps.nonlinear import MaxPool


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
        inner = Separable(rows, columns, image[0], seen=3)
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
    device = device_of(call.captured.module)

    def weights(image: torch.Tensor, axis: int) -> torch.Tensor:
        batch = torch.cat([image[None], torch.zeros(BATCH - 1, *image.shape, dtype=torch.float64, device=device)])
        answer: torch.Tensor = call.evaluate({source: batch})
        return answer[0].select(axis, 0).T.contiguous()

    rows = torch.eye(height, dtype=torch.float64, device=device)[:, :, None].expand(-1, -1, width)
    columns = torch.eye(width, dtype=torch.float64, device=device)[:, None, :].expand(-1, height, -1)
    return call.linear(source, Separable(weights(rows, 2), weights(columns, 1), channels, seen=64))


@rule("mean.dim", "mean", "sum.dim_IntList", "sum")
def reduced(call: Call) -> Node:
    """Mean or sum over some axes of every sample."""
    source = call.node("self")
    rank = len(source.shape) + 1
    given = call.arguments.get("dim")
    given = [given] if isinstance(given, int) else given
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


@rule("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices")
def max_pooled(call: Call) -> Node | Parts:
    """Maximum over windows."""
    source = call.node("self")
    rank = 1 if "1d" in str(call.origin.target) else 3 if "3d" in str(call.origin.target) else 2
    kernel, stride, padding, dilation = (
        _numbers(call.arguments.get(name), rank) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    sides, counts = source.shape[-rank:], call.out_shape[-rank:]
    axes = zip(sides, counts, kernel, stride or kernel, padding or [0] * rank, dilation or [1] * rank, strict=True)
    return _max_pooled(call, source, [windows(*axis) for axis in axes])


@rule("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptively_max_pooled(call: Call) -> Node | Parts:
    """Maximum over a given number of windows."""
    source = call.node("self")
    rank = int(str(call.origin.target).split("pool")[1][0])
    axes = zip(source.shape[-rank:], call.out_shape[-rank:], strict=True)
    return _max_pooled(call, source, [adaptive_windows(*axis) for axis in axes])


def _max_pooled(call: Call, source: Node, axes: list[torch.Tensor]) -> Node | Parts:
    if any(bool((pixels < 0).all(1).any()) for pixels in axes):
        raise NotCoveredError("with a window that contains no pixel, for which torch does not define the value")
    node = call.make(MaxPool(tuple(axes)), source)
    return node if isinstance(call.origin.meta["val"], torch.Tensor) else Parts((node,))


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


def _image(shape: Shape) -> Shape:
    if len(shape) not in (2, 3):
        raise NotCoveredError(f"on inputs of shape {shape}")
    return shape if len(shape) == 3 else (shape[0], 1, shape[1])


def _pair(value: Sequence[int] | int | None, flat: bool) -> tuple[int, int] | None:
    """(vertical, horizontal), or None for torch's default; one-dimensional windows have height 1."""
    numbers = [value] if isinstance(value, int) else list(value or [])
    if not numbers:
        return None
    return (1 if flat else numbers[0], numbers[-1])


def _numbers(value: Sequence[int] | int | None, rank: int) -> list[int]:
    """One number per axis; empty for torch's default."""
    numbers = [value] if isinstance(value, int) else list(value or [])
    return numbers * rank if len(numbers) == 1 else numbers
