"""Tensors as ONNX files store them; sizes are checked against the data in the file before anything is allocated."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustres.errors import ModelError

# Codes of TensorProto.DataType, and the field that holds the numbers if they are not stored as raw bytes.
DTYPES: Mapping[int, tuple[torch.dtype, str]] = {
    1: (torch.float32, "float_data"),
    2: (torch.uint8, "int32_data"),
    3: (torch.int8, "int32_data"),
    5: (torch.int16, "int32_data"),
    6: (torch.int32, "int32_data"),
    7: (torch.int64, "int64_data"),
    9: (torch.bool, "int32_data"),
    10: (torch.float16, "int32_data"),
    11: (torch.float64, "double_data"),
    16: (torch.bfloat16, "int32_data"),
}
FLOAT_BITS = frozenset({torch.float16, torch.bfloat16})  # stored as integers with the same bits
EXTERNAL = 1
LARGEST_RANK = 16


def dtype_of(code: int) -> torch.dtype:
    """The torch type for this code; raises ModelError for strings, complex numbers and types of fewer than 8 bits."""
    if code not in DTYPES:
        raise ModelError(f"the tensor type {code} of ONNX is not supported; export the network in float32")
    return DTYPES[code][0]


def read_tensor(proto: Any, folder: Path) -> Tensor:
    """Convert a TensorProto to a tensor; external data may only come from a file inside `folder`."""
    dtype, field = dtype_of(proto.data_type), DTYPES[proto.data_type][1]
    shape = [int(side) for side in proto.dims]
    if any(side < 0 for side in shape) or len(shape) > LARGEST_RANK or proto.HasField("segment"):
        raise ModelError(f"the tensor {proto.name!r} has the invalid shape {shape[:LARGEST_RANK]}")
    count = math.prod(shape)
    size = count * dtype.itemsize
    if proto.data_location == EXTERNAL:
        content = _external(proto, folder, size)
    elif proto.HasField("raw_data"):
        content = bytearray(proto.raw_data)
    else:
        return _from_numbers(proto, getattr(proto, field), dtype, shape)
    if len(content) != size:
        raise ModelError(f"the tensor {proto.name!r} of shape {shape} needs {size} bytes, the file has {len(content)}")
    return (torch.frombuffer(content, dtype=dtype) if size else torch.empty(0, dtype=dtype)).reshape(shape)


def store_tensor(proto: Any, name: str, tensor: Tensor) -> None:
    """Fill an empty TensorProto."""
    proto.name = name
    proto.data_type = next(code for code, (dtype, _) in DTYPES.items() if dtype == tensor.dtype)
    proto.dims.extend(tensor.shape)
    proto.raw_data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _from_numbers(proto: Any, numbers: Any, dtype: torch.dtype, shape: list[int]) -> Tensor:
    if len(numbers) != math.prod(shape):
        raise ModelError(
            f"the tensor {proto.name!r} of shape {shape} needs {math.prod(shape)} numbers, the file has {len(numbers)}"
        )
    if dtype in FLOAT_BITS:
        bits = torch.tensor(list(numbers), dtype=torch.int32).to(torch.int16)
        return bits.view(dtype).reshape(shape)
    return torch.tensor(list(numbers)).to(dtype).reshape(shape)


def _external(proto: Any, folder: Path, size: int) -> bytearray:
    """`size` bytes of a file beside the model."""
    entries = {entry.key: entry.value for entry in proto.external_data}
    location = entries.get("location", "")
    try:
        path = (folder / location).resolve()
        inside = location != "" and path.is_relative_to(folder.resolve()) and "\0" not in location
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        raise ModelError(f"the tensor {proto.name!r} refers to {location!r}, which is not inside the file's folder")
    if not path.is_file():
        raise ModelError(f"the tensor {proto.name!r} refers to {location!r}, which is not a file beside the model")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    except ValueError as error:
        raise ModelError(f"the tensor {proto.name!r} does not start at a valid offset in {location!r}") from error
    if length != size or offset < 0 or offset + size > path.stat().st_size:
        raise ModelError(
            f"the tensor {proto.name!r} needs {size} bytes from offset {offset} of {location!r}, which provides "
            f"{length} for it and {path.stat().st_size} in total; the file is damaged or belongs to another model"
        )
    with path.open("rb") as file:
        file.seek(offset)
        return bytearray(file.read(size))
