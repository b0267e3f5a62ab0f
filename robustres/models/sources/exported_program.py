"""Networks written by `torch.export.save` (.pt2), read without `torch.export.load`.

That function unpickles, evaluates expressions and guards written as Python, and loads compiled libraries found in the
archive. Here the description of the graph is read as JSON and the weights as plain numbers; anything else is refused.
The first run is in a separate process, with limits on memory and time. The format is that of torch 2.9 and later
(archive version 1): earlier versions pickle the weights.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from robustres.errors import ModelError
from robustres.models.sources.apart import tried_apart
from robustres.models.sources.archive import Archive
from robustres.models.sources.aten_graph import ARITHMETIC, AtenGraph, aten_operation, require_moderate

KIND = "a program of torch.export"
# Codes of the format.
DTYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
MEMORY_FORMATS: Mapping[int, torch.memory_format] = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
STRIDED = 7
# Arguments stored in the JSON directly.
PLAIN = frozenset({"as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string", "as_int_lists"})
KEYWORD = 2
# Limit on the pixels of a random image used as a check.
LARGEST_PROBE = 2**20
LARGEST_BATCH = 2**8


def load_exported(path: Path) -> nn.Module:
    """The network in a .pt2 file, in evaluation mode; nothing in the file is executed except its tensor operations.

    Raises ModelError if the file is damaged, is not one network from images to logits, was exported in training
    mode, or needs an operation that is not of ATen.
    """
    module, _, _ = _opened(path)
    try:
        tried_apart(path, None)
    except ModelError as error:
        raise Archive(path, KIND).unreadable(str(error)) from error
    return module


def run_program(path: Path, input_shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Run the network in a file on random images of the shape stated in the file, and return this shape (C, H, W).

    input_shape: unused, since a program states its own.
    Raises ModelError if the network only accepts the batch size with which it was exported.
    """
    module, (batch, *shape), dtype = _opened(path)
    images = torch.rand(2 if batch is None else batch, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        module(images)
        if batch is not None:
            _require_any_batch(module, images)
    return tuple(shape)


def _opened(path: Path) -> tuple[nn.Module, tuple[Any, ...], torch.dtype]:
    """The network, the sizes of its images (None for any batch size) and their type; nothing has been run."""
    if not path.is_file():
        raise ModelError(f"there is no file {path}; check the path")
    archive = Archive(path, KIND)
    models = [name for name in archive.names if name.startswith("models/") and name.endswith(".json")]
    if len(models) != 1:
        raise archive.unreadable(
            f"it holds {len(models)} programs where one is expected; files of torch before 2.8 have another form: save "
            "it with torch 2.9 or later"
        )
    name = models[0].removeprefix("models/").removesuffix(".json")
    try:
        program = json.loads(archive.read(models[0]))["graph_module"]
        weights = _tensors(archive, f"data/weights/{name}_weights_config.json", "data/weights")
        constants = _tensors(archive, f"data/constants/{name}_constants_config.json", "data/constants")
        module, (sizes, dtype) = _module(program, weights, constants), _images(program)
        batch, *shape = cast(tuple[int, ...], sizes)
        require_moderate(module, torch.zeros(2 if batch is None else batch, *shape, dtype=dtype))
        return module, sizes, dtype
    except ModelError as error:
        raise archive.unreadable(str(error)) from error
    except Exception as error:  # the file may contain anything, and reading it may raise anything
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise archive.unreadable(f"{type(error).__name__}: {reason}") from error


def _tensors(archive: Archive, config: str, folder: str) -> dict[str, Tensor]:
    """The tensors named in a configuration, from the raw numbers beside it."""
    if config not in archive.names:
        raise ModelError("its weights are pickled, as torch before 2.9 writes them; save it with torch 2.9 or later")
    return {name: _tensor(archive, entry, folder) for name, entry in json.loads(archive.read(config))["config"].items()}


def _tensor(archive: Archive, entry: Mapping[str, Any], folder: str) -> Tensor:
    meta = entry["tensor_meta"]
    if entry["use_pickle"] or meta is None or meta["layout"] != STRIDED or meta["dtype"] not in DTYPES:
        raise ModelError("it holds tensors or objects that are not plain numbers and would have to be unpickled")
    sizes, strides = ([int(side["as_int"]) for side in meta[key]] for key in ("sizes", "strides"))
    content = bytearray(archive.read(f"{folder}/{entry['path_name']}"))
    dtype = DTYPES[meta["dtype"]]
    if math.prod(sizes) * dtype.itemsize > len(content):
        raise ModelError(f"{entry['path_name']} has fewer numbers than its shape {sizes} says")
    flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return flat.as_strided(sizes, strides, int(meta["storage_offset"]["as_int"])).clone()


def _module(program: Mapping[str, Any], weights: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> nn.Module:
    built, values = AtenGraph(), dict[str, fx.Node]()
    images = 0
    for spec in program["signature"]["input_specs"]:
        ((kind, entry),) = spec.items()
        if kind == "user_input" and "as_tensor" in entry["arg"]:
            name = entry["arg"]["as_tensor"]["name"]
            values[name] = built.input(name)
            images += 1
        elif kind in {"parameter", "buffer", "tensor_constant"}:
            name = entry[f"{kind}_name"]
            stored = weights if name in weights else constants
            values[entry["arg"]["name"]] = built.tensor(name, stored[name], trainable=kind == "parameter")
        else:
            raise ModelError(f"it takes an input of the kind {kind}; one tensor of images is expected")
    outputs = program["signature"]["output_specs"]
    if images != 1 or len(outputs) != 1 or "user_output" not in outputs[0]:
        raise ModelError(
            f"it has {images} inputs and gives {len(outputs)} results, updated buffers included; export a network "
            "from images to logits, after model.eval()"
        )
    for node in program["graph"]["nodes"]:
        _add_node(built, values, node)
    return built.finish(values[outputs[0]["user_output"]["arg"]["as_tensor"]["name"]])


def _images(program: Mapping[str, Any]) -> tuple[tuple[int | None, ...], torch.dtype]:
    """Sizes (N, C, H, W) of the images, with N = None if it is arbitrary, and their type.

    Raises ModelError if another size is arbitrary, or if the type is not floating-point.
    """
    (name,) = (
        spec["user_input"]["arg"]["as_tensor"]["name"]
        for spec in program["signature"]["input_specs"]
        if "user_input" in spec
    )
    stated = program["graph"]["tensor_values"][name]
    dtype = DTYPES.get(stated["dtype"])
    if dtype is None or not dtype.is_floating_point:
        raise ModelError("it takes images of whole numbers; export it for floating-point images in [0, 1]")
    sizes = tuple(side.get("as_int") for side in stated["sizes"])
    if None in sizes[1:] or not 0 < math.prod(sizes[1:]) <= LARGEST_PROBE:
        raise ModelError(f"it takes images of the shape {list(sizes[1:])}; fixed sides of moderate size are needed")
    if sizes[0] is not None and not 0 < sizes[0] <= LARGEST_BATCH:
        raise ModelError(f"it takes exactly {sizes[0]} images at a time, for which there is no use")
    return sizes, dtype


def _require_any_batch(module: nn.Module, images: Tensor) -> None:
    """Raise ModelError if the graph only accepts the exported batch size, which is that of `images`."""
    try:
        fits = len(module(torch.cat([images, images[:1]]))) == len(images) + 1
    except RuntimeError:
        fits = False
    if not fits:
        raise ModelError(
            f"it takes exactly {len(images)} images at a time; export it for any number, with "
            'dynamic_shapes=({0: torch.export.Dim("n")},)'
        )


def _add_node(built: AtenGraph, values: dict[str, fx.Node], node: Mapping[str, Any]) -> None:
    """Add one operation and its results by name."""
    operation = _operation(str(node["target"]))
    entries = [(entry["name"], _argument(entry["arg"], values), entry.get("kind")) for entry in node["inputs"]]
    args = [value for _, value, kind in entries if kind != KEYWORD]
    result = built.call(operation, args, {name: value for name, value, kind in entries if kind == KEYWORD})
    outputs = node["outputs"]
    if len(outputs) == 1 and "as_tensors" not in outputs[0]:
        if name := _name(outputs[0]):
            values[name] = result
        return
    names = [tensor["name"] for tensor in outputs[0]["as_tensors"]] if len(outputs) == 1 else map(_name, outputs)
    for position, name in enumerate(names):
        values[name] = built.call(ARITHMETIC["getitem"], [result, position])


def _operation(target: str) -> Any:
    parts = target.split(".")
    if parts[:3] == ["torch", "ops", "aten"] and len(parts) == 5:
        return aten_operation(parts[3], parts[4])
    if parts[0] == "_operator" and len(parts) == 2 and parts[1] in ARITHMETIC:
        return ARITHMETIC[parts[1]]
    raise ModelError(f"it calls {target}, which is not an ATen operation")


def _name(output: Mapping[str, Any]) -> str:
    """The name of this result in later operations; empty if there is none."""
    ((_, entry),) = output.items()
    return str(entry.get("name", entry.get("as_name", ""))) if isinstance(entry, dict) else ""


def _argument(argument: Mapping[str, Any], values: Mapping[str, fx.Node]) -> Any:
    ((kind, value),) = argument.items()
    if kind in PLAIN:
        return value
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return values[value["name"]]
    if kind == "as_tensors":
        return [values[tensor["name"]] for tensor in value]
    if kind in {"as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"}:
        return _either(value, values)
    if kind in {"as_sym_ints", "as_sym_floats", "as_sym_bools", "as_optional_tensors"}:
        return [_either(entry, values) for entry in value]
    if kind == "as_scalar_type":
        return DTYPES[value]
    if kind == "as_memory_format":
        return MEMORY_FORMATS[value]
    if kind == "as_layout" and value == STRIDED:
        return torch.strided
    if kind == "as_device":
        return torch.device("cpu")
    raise ModelError(f"it uses an argument of the kind {kind}, which is not supported")


def _either(entry: Mapping[str, Any], values: Mapping[str, fx.Node]) -> Any:
    """A number, or a result by name."""
    ((kind, value),) = entry.items()
    if kind == "as_tensor":
        return values[value["name"]]
    return values[value] if kind == "as_name" else None if kind == "as_none" else value
