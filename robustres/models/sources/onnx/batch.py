"""Files exported for one batch size: the number of images in their shapes is replaced by that of the batch.

The batch is always the outermost axis of what it is part of, in torch's memory order. The axis of a shape that contains
the batch is therefore found by counting: the same number of elements precedes it as precedes the batch in the input.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.traced import Dim, Known, Side, Traced, apply, side_of


def reshaped(x: Traced, wanted: Sequence[Side], fixed: int) -> list[Side]:
    """Convert a shape for `fixed` images to one for any number."""
    places = [place for place, side in enumerate(x.shape) if isinstance(side, Dim)]
    if len(places) != 1 or any(isinstance(side, Dim) for side in wanted):
        return list(wanted)
    own = tuple(x.shapes[0].shape)  # index 0 is the fixed batch size
    sides = [int(side) for side in wanted]  # type: ignore[arg-type]
    rest = math.prod(side for side in sides if side != -1)
    sides = [math.prod(own) // max(rest, 1) if side == -1 else side for side in sides]
    for place, side in enumerate(sides):
        if math.prod(sides[:place]) == math.prod(own[: places[0]]) and side % fixed == 0:
            x.recorder.rewritten |= wanted[place] != -1
            return [*sides[:place], side_of(side // fixed * batch for batch in x.recorder.batches), *sides[place + 1 :]]
    raise ModelError(
        f"has a shape for {fixed} images, {sides}, in which the batch cannot be distinguished from the rest"
    )


def expanded(x: Traced, wanted: Sequence[Side], fixed: int) -> list[Side]:
    """The shape to expand to, for any number of images."""
    offset = len(wanted) - x.ndim
    result = list(wanted)
    for place, side in enumerate(x.shape):
        if isinstance(side, Dim) and offset + place >= 0 and wanted[offset + place] == side.values[0]:
            x.recorder.rewritten |= side.values[0] != 1
            result[offset + place] = side
    return result


def side_by_side(call: Call, parts: list[Any], axis: int, fixed: int) -> list[Tensor]:
    """Tensors to concatenate; those for `fixed` images are repeated for every image."""
    sides: list[Side] = list(parts[0].shape)
    for part in parts:
        for place, side in enumerate(part.shape):
            if isinstance(side, Dim) and place < len(sides):
                sides[place] = side
    result = []
    for position, part in enumerate(parts):
        target = [part.shape[place] if place == axis else side for place, side in enumerate(sides)]
        lacking = [k for k, (side, own) in enumerate(zip(target, part.shape, strict=False)) if side != own]
        if not lacking:
            result.append(part)
            continue
        if len(lacking) > 1 or part.shape[lacking[0]] != fixed:
            raise ModelError("concatenates tensors of different numbers of images")
        row = _one_row(call, position, part, lacking[0])
        call.recorder.rewritten = True
        result.append(apply(torch.broadcast_to, row, tuple(target)))
    return result


def _one_row(call: Call, position: int, part: Any, axis: int) -> Any:
    """The row that is the same for each of the fixed number of images."""
    if part.shape[axis] == 1:
        return part
    value = call.inputs[position]
    if isinstance(value, Known) and value.constant:
        row = value.values[0].narrow(axis, 0, 1)
        if torch.equal(row.expand_as(value.values[0]), value.values[0]):
            return call.recorder.lift(row.clone())
    raise ModelError("has constants that differ between the images of the batch for which the file was exported")
