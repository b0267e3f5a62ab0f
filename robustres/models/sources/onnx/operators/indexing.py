"""Indexing: slices, rows and single elements."""

import operator as python

import torch
from torch import Tensor

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.operators.shapes import reshaped
from robustres.models.sources.onnx.registry import operator
from robustres.models.sources.onnx.traced import Side, Traced, apply, device_of, side_of


@operator("Slice", 1, 10, 11, 13)
def slice_(call: Call) -> Tensor:
    """Slices from start to end (exclusive) along some axes, with steps that may be negative."""
    x = call.tensor(0)
    if call.version < 10:
        starts, ends = call.ints_attribute("starts") or [], call.ints_attribute("ends") or []
        axes, steps = call.ints_attribute("axes"), None
    else:
        starts, ends = call.ints(1, "starts"), call.ints(2, "ends")  # type: ignore[assignment]
        axes = call.static_ints(3, "axes") if call.given(3) else None
        steps = call.static_ints(4, "steps") if call.given(4) else None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ModelError("has different numbers of starts, ends, axes and steps")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _sliced(x, call.axis(axis, x.ndim), start, end, step)
    return x


@operator("Gather", 1, 11, 13)
def gather(call: Call) -> Tensor:
    """Slices of the first input along an axis at the indices in the second."""
    x = call.tensor(0)
    axis = call.axis(call.attribute("axis", 0), x.ndim)
    side = x.shape[axis]
    varying = call.by_batch(1)
    if varying is not None and x.ndim == 1 and isinstance(x, Traced) and _all_in_order(varying, x):
        return reshaped(x, [side_of(sides) for sides in zip(*(tuple(v.shape) for v in varying), strict=True)])
    if not call.known(1) or call.shapes_only:
        places = call.tensor(1)
        if isinstance(side, int):
            places = torch.where(torch.lt(places, 0), torch.add(places, side), places)
        return _rows(x, axis, places)
    places = call.constant(1, "places")
    if places.is_floating_point():
        raise ModelError("has indices that are not integers")
    if isinstance(side, int):
        if places.numel() and not (-side <= int(places.min()) and int(places.max()) < side):
            raise ModelError(f"takes indices {int(places.min())} to {int(places.max())} of an axis of size {side}")
        places = torch.where(places < 0, places + side, places)
    if places.ndim == 0:
        return torch.select(x, axis, int(places))
    first, count = int(places.reshape(-1)[0]) if places.numel() else 0, places.numel()
    if places.ndim == 1 and first >= 0 and torch.equal(places, first + torch.arange(count, dtype=places.dtype)):
        return x if count == side else torch.narrow(x, axis, first, count)
    return _rows(x, axis, places)


@operator("GatherElements", 11, 13)
def gather_elements(call: Call) -> Tensor:
    """Single elements along an axis at the indices in the second input."""
    x, places = call.tensor(0), call.tensor(1)
    axis = call.axis(call.attribute("axis", 0), x.ndim)
    side = x.shape[axis]
    if not isinstance(side, int):
        raise ModelError("indexes the batch axis")
    places = apply(torch.ops.aten.to.dtype, places, torch.int64)
    return torch.gather(x, axis, torch.where(torch.lt(places, 0), torch.add(places, side), places))


def _sliced(x: Tensor, axis: int, start: Side, end: Side, step: int) -> Tensor:
    side = x.shape[axis]
    if step == 0:
        raise ModelError("has the step 0")
    if isinstance(side, int) and isinstance(start, int) and isinstance(end, int):
        start, end, _ = slice(start, end, step).indices(side) if step > 0 else _backwards(start, end, side)
        if step < 0:
            x, start, end, step = torch.flip(x, (axis,)), side - 1 - start, side - 1 - end, -step
        count = max(-(-(end - start) // step), 0)
        if count == side:
            return x
        if step == 1 or count <= 1:
            return torch.narrow(x, axis, min(start, side), count)
        end = start + (count - 1) * step + 1
    elif step < 0:
        raise ModelError("goes backwards along the batch axis")
    elif start == 0 and (end == side or (isinstance(end, int) and end >= 2**31 - 1)):
        return x if step == 1 else _taken(x, axis, slice(None, None, step))
    return _taken(x, axis, slice(start, end, step))


def _backwards(start: int, end: int, side: int) -> tuple[int, int, int]:
    """Start and end of a slice with negative step, clamped as in ONNX."""
    start = min(max(start + side if start < 0 else start, 0), side - 1)
    end = min(max(end + side if end < 0 else end, -1), side - 1)
    return start, end, -1


def _taken(x: Tensor, axis: int, part: slice) -> Tensor:
    result: Tensor = apply(python.getitem, x, (*(slice(None),) * axis, part))
    return result


def _all_in_order(places: tuple[Tensor, ...], x: Traced) -> bool:
    """Whether all elements are taken in order: a reshape, in the form torch exports when it cannot express it."""
    pairs = zip(places, x.shapes, strict=True)
    return all(torch.equal(one.flatten(), torch.arange(len(shape))) for one, shape in pairs)


def _rows(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """Slices at indices that have several axes."""
    if places.ndim == 1:
        return torch.index_select(x, axis, places)
    rows = torch.index_select(x, axis, torch.flatten(places))
    return reshaped(rows, [*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])


@operator("GatherND", 11, 12, 13)
def gather_nd(call: Call) -> Tensor:
    """Slices of the first input at the index rows of the second, for each of the leading `batch_dims`."""
    x, places = call.tensor(0), call.constant(1, "places")
    leading = call.attribute("batch_dims", 0)
    if leading == 0 and places.ndim >= 1 and places.shape[-1] <= x.ndim:
        columns = tuple(column.to(device_of(x)) for column in places.unbind(-1))
        result: Tensor = apply(python.getitem, x, columns)
        return result
    raise ModelError("gathers in each image separately (batch_dims), which is not supported")


@operator("ScatterND", 11, 13, 16, 18)
def scatter_nd(call: Call) -> Tensor:
    """The first input with slices at the index rows of the second replaced by those of the third."""
    x, places, updates = call.tensor(0), call.constant(1, "places"), call.tensor(2)
    if call.attribute("reduction", "none") != "none" or places.ndim < 1 or places.shape[-1] > x.ndim:
        raise ModelError("uses a reduction, which is not supported")
    columns = tuple(column.to(device_of(x)) for column in places.unbind(-1))
    return torch.index_put(x, columns, updates)
