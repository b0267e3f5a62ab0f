"""Operators that rearrange elements without changing them: shapes, axes, copies."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from robustres.errors import ModelError
from robustres.models.sources.onnx import batch
from robustres.models.sources.onnx.call import Call, product
from robustres.models.sources.onnx.registry import operator
from robustres.models.sources.onnx.traced import Dim, Known, Side, Traced, apply


@operator("Reshape", 5, 13, 14, 19, 21, 23, 24, 25)
def reshape(call: Call) -> Tensor:
    """The same elements in another shape; 0 copies a size (unless allowzero), -1 is inferred."""
    x, wanted = call.tensor(0), call.ints(1, "a shape")
    if not call.attribute("allowzero", 0):
        if any(side == 0 and place >= x.ndim for place, side in enumerate(wanted)):
            raise ModelError(f"copies the size of an axis that its input of {x.ndim} axes does not have")
        wanted = [x.shape[place] if side == 0 else side for place, side in enumerate(wanted)]
    if isinstance(x, Traced) and call.fixed_batch is not None:
        wanted = batch.reshaped(x, wanted, call.fixed_batch)
    return reshaped(x, wanted)


@operator("Flatten", 1, 9, 11, 13, 21, 23, 24, 25)
def flatten(call: Call) -> Tensor:
    """A matrix: the axes before a given one, and the rest."""
    x = call.tensor(0)
    axis = call.attribute("axis", 1)
    axis = x.ndim if axis == x.ndim else call.axis(axis, x.ndim)
    if axis == 1 and x.ndim > 1:
        return torch.flatten(x, 1)
    return reshaped(x, [product(x.shape[:axis]), product(x.shape[axis:])])


@operator("Squeeze", 1, 11, 13, 21, 23, 24, 25)
def squeeze(call: Call) -> Tensor:
    """Remove axes of size 1."""
    x = call.tensor(0)
    axes = _axes(call)
    if axes is None:
        axes = [axis for axis, side in enumerate(x.shape) if side == 1]
    places = sorted({call.axis(axis, x.ndim) for axis in axes})
    if any(x.shape[place] != 1 for place in places):
        raise ModelError(f"removes axes {places} of a tensor of shape {_said(x.shape)}")
    return torch.squeeze(x, tuple(places)) if places else x


@operator("Unsqueeze", 1, 11, 13, 21, 23, 24, 25)
def unsqueeze(call: Call) -> Tensor:
    """Insert axes of size 1."""
    x, axes = call.tensor(0), _axes(call)
    if axes is None:
        raise ModelError("has no axes")
    for place in sorted(call.axis(axis, x.ndim + len(axes)) for axis in axes):
        x = torch.unsqueeze(x, place)
    return x


@operator("Transpose", 1, 13, 21, 23, 24, 25)
def transpose(call: Call) -> Tensor:
    """Permute the axes."""
    x = call.tensor(0)
    order = call.ints_attribute("perm")
    return torch.permute(x, tuple(range(x.ndim))[::-1] if order is None else tuple(order))


@operator("Concat", 4, 11, 13)
def concat(call: Call) -> Tensor:
    """Concatenate along an axis."""
    parts = [call.tensor(position) for position in range(len(call))]
    axis = call.axis(call.attribute("axis", 0), parts[0].ndim)
    if call.fixed_batch is not None and call.place is None:
        parts = batch.side_by_side(call, parts, axis, call.fixed_batch)
    return torch.cat(parts, axis)


@operator("Split", 2, 11, 13, 18)
def split(call: Call) -> tuple[Tensor, ...]:
    """Split along an axis."""
    x = call.tensor(0)
    axis = call.axis(call.attribute("axis", 0), x.ndim)
    side = x.shape[axis]
    sizes = call.ints_attribute("split") if call.version < 13 else None
    if call.version >= 13 and call.given(1):
        sizes = call.static_ints(1, "sizes")
    if sizes is None:
        count = call.attribute("num_outputs", len(call.outputs))
        if not isinstance(side, int) or count < 1:
            raise ModelError("splits the batch axis")
        each = math.ceil(side / count) if call.version >= 18 else side // count
        sizes = [each] * (count - 1)
        sizes.append(side - sum(sizes))
    if len(sizes) != len(call.outputs) or any(size < 0 for size in sizes):
        raise ModelError(f"splits into {len(sizes)} parts for {len(call.outputs)} outputs")
    return tuple(torch.split(x, sizes, axis))


@operator("Expand", 8, 13)
def expand(call: Call) -> Tensor:
    """Broadcast along axes of size 1."""
    x, wanted = call.tensor(0), call.ints(1, "a shape")
    if isinstance(x, Traced) and call.fixed_batch is not None:
        wanted = batch.expanded(x, wanted, call.fixed_batch)
    return expanded(x, wanted)


@operator("Tile", 6, 13)
def tile(call: Call) -> Tensor:
    """Repeat along every axis."""
    x, repeats = call.tensor(0), call.ints(1, "numbers of copies")
    if len(repeats) != x.ndim or any(isinstance(count, int) and count < 0 for count in repeats):
        raise ModelError(f"repeats {x.ndim} axes {_said(repeats)} times")
    result: Tensor = apply(torch.tile, x, tuple(repeats))
    return result


@operator("DepthToSpace", 1, 11, 13)
def depth_to_space(call: Call) -> Tensor:
    """Channels moved into squares of pixels."""
    x, size = call.tensor(0), call.attribute("blocksize", 0)
    if call.attribute("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, size)
    batch_, channels, height, width = _image(x)
    parts = reshaped(x, [batch_, size, size, channels // (size * size), height, width])
    moved = torch.permute(parts, (0, 3, 4, 1, 5, 2))
    return reshaped(moved, [batch_, channels // (size * size), height * size, width * size])


@operator("SpaceToDepth", 1, 13)
def space_to_depth(call: Call) -> Tensor:
    """Squares of pixels moved into channels."""
    x, size = call.tensor(0), call.attribute("blocksize", 0)
    batch_, channels, height, width = _image(x)
    parts = reshaped(x, [batch_, channels, height // size, size, width // size, size])
    moved = torch.permute(parts, (0, 3, 5, 1, 2, 4))
    return reshaped(moved, [batch_, channels * size * size, height // size, width // size])


@operator("Size", 1, 13, 19, 21, 23, 24, 25)
def size_(call: Call) -> Tensor | Known:
    """The number of elements of the input."""
    return call.whole_numbers([product(tuple(call.tensor(0).shape))], scalar=True)


def reshaped(x: Tensor, sides: Sequence[Side]) -> Tensor:
    """Reshape; torch infers one size that depends on the batch, so that the graph contains only numbers."""
    dims = [place for place, side in enumerate(sides) if isinstance(side, Dim)]
    free = [place for place, side in enumerate(sides) if isinstance(side, int) and side < 0]
    if any(isinstance(side, int) and side < -1 for side in sides) or len(free) > 1:
        raise ModelError(f"asks for the shape {_said(sides)}")
    if len(dims) == 1 and not free and 0 not in sides:
        sides = [-1 if place == dims[0] else side for place, side in enumerate(sides)]
    result: Tensor = apply(torch.reshape, x, tuple(sides))
    return result


def expanded(x: Tensor, wanted: Sequence[Side]) -> Tensor:
    """Broadcast axes of size 1, both of the input and of the requested shape."""
    sides = list(wanted)
    own: list[Side] = list(x.shape)
    rank = max(len(sides), len(own))
    sides = [*(1,) * (rank - len(sides)), *sides]
    own = [*(1,) * (rank - len(own)), *own]
    result: Tensor = apply(
        torch.broadcast_to, x, tuple(side if mine == 1 else mine for mine, side in zip(own, sides, strict=True))
    )
    if any(side not in (1, mine) and mine != 1 for mine, side in zip(own, sides, strict=True)):
        raise ModelError(f"expands the shape {_said(own)} to {_said(sides)}")
    return result


def _axes(call: Call) -> list[int] | None:
    if call.version < 13:
        return call.ints_attribute("axes")
    return call.static_ints(1, "axes") if call.given(1) else None


def _image(x: Tensor) -> tuple[Side, int, int, int]:
    batch_, *sides = x.shape
    if len(sides) != 3 or not all(isinstance(side, int) for side in sides):
        raise ModelError(f"needs images, got a tensor of {x.ndim} axes")
    return batch_, sides[0], sides[1], sides[2]


def _said(sides: Sequence[Side]) -> str:
    return str([side if isinstance(side, int) else "?" for side in sides][:16])
