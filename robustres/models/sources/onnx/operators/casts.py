"""Constants and changes of type."""

import torch
from torch import Tensor

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call
from robustres.models.sources.onnx.registry import operator
from robustres.models.sources.onnx.tensors import dtype_of
from robustres.models.sources.onnx.traced import Known, apply


@operator("Constant", 1, 9, 11, 12, 13, 19, 21, 23, 24, 25)
def constant(call: Call) -> Tensor:
    """A tensor stored in the file."""
    kinds = {"value": None, "value_float": torch.float32, "value_floats": torch.float32,
             "value_int": torch.int64, "value_ints": torch.int64}  # fmt: skip
    named = [name for name in call.attributes if name in kinds]
    if len(named) != 1:
        raise ModelError("is a constant of an unsupported kind (sparse, or of strings)")
    value = call.attributes[named[0]]
    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=kinds[named[0]])
    return tensor.to("meta") if call.shapes_only else tensor


@operator("Cast", 6, 9, 13, 19, 21, 23, 24, 25)
def cast(call: Call) -> Tensor:
    """Conversion to another type."""
    return _as(call, dtype_of(call.attribute("to", 0)))


@operator("CastLike", 15, 19, 21, 23, 24, 25)
def cast_like(call: Call) -> Tensor:
    """Conversion to the type of another tensor."""
    return _as(call, call.tensor(1).dtype)


@operator("Identity", 1, 13, 14, 16, 19, 21, 23, 24, 25)
def identity(call: Call) -> Tensor:
    """The input."""
    return call.tensor(0)


@operator("Dropout", 7, 10, 12, 13, 22)
def dropout(call: Call) -> Tensor:
    """The input: networks are converted for inference, not for training."""
    call.only_output()
    if call.version >= 12 and call.given(2) and bool(call.number(2, "a mode of training")):
        raise ModelError("is in training mode; call model.eval() before you export it")
    return call.tensor(0)


@operator("Range", 11)
def whole_range(call: Call) -> Tensor:
    """Numbers from a start up to, but not including, a limit, with a constant step."""
    start, limit, delta = (call.number(position, "a limit") for position in range(3))
    if delta == 0:
        raise ModelError("has the distance 0")
    dtype = call.constant(0, "a start").dtype
    count = max(-((start - limit) // delta) if delta else 0, 0)
    if count > 2**25:
        raise ModelError(f"creates {count:.3g} numbers, more than any network needs")
    kind = torch.float64 if dtype.is_floating_point else torch.int64
    steps = torch.arange(int(count), dtype=kind, device="meta" if call.shapes_only else "cpu")
    return (start + steps * delta).to(dtype)


@operator("ConstantOfShape", 9, 20, 21, 23, 24, 25)
def constant_of_shape(call: Call) -> Tensor:
    """A constant tensor of one value."""
    value = call.attributes.get("value", torch.zeros(1))
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ModelError("has a value that is not a single number")
    shape = call.ints(0, "a shape")
    if call.place is None:
        return apply(torch.broadcast_to, call.recorder.lift(value.reshape(())), shape)  # type: ignore[no-any-return]
    if call.shapes_only:
        return torch.empty(shape, dtype=value.dtype, device="meta")  # type: ignore[arg-type]
    return torch.full(shape, value.item(), dtype=value.dtype)  # type: ignore[arg-type]


@operator("Shape", 1, 13, 15, 19, 21, 23, 24, 25)
def shape(call: Call) -> Tensor | Known:
    """The shape of the input."""
    sides = tuple(call.tensor(0).shape)
    start, end = call.attribute("start", 0), call.attributes.get("end")
    return call.whole_numbers(sides[slice(start, end)])


def _as(call: Call, dtype: torch.dtype) -> Tensor:
    x = call.tensor(0)
    return x if x.dtype == dtype else apply(torch.ops.aten.to.dtype, x, dtype)
