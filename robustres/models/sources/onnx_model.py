"""ONNX files as PyTorch modules, compared with onnxruntime every time: the conversion is sometimes silently wrong."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustres.errors import MissingExtraError, ModelError
from robustres.guard import random_state_kept

TOLERANCE = 1e-4
PROBES = 4


def load_onnx(path: Path) -> nn.Module:
    """The network in an ONNX file, in evaluation mode, checked against onnxruntime on random images.

    Raises MissingExtraError without the extra `onnx`; ModelError where the file is damaged, refers to files outside
    its folder, has an operation that cannot be converted, or the converted network answers differently.
    """
    try:
        import onnx
        import onnx2torch
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("loading an ONNX model", "onnx") from error
    if not path.is_file():
        raise ModelError(f"there is no ONNX file {path}; check the path")
    try:
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto)
    except Exception as error:
        raise ModelError(f"cannot read {path} as ONNX ({_first_line(error)}); export the network again") from error
    shape = _image_shape(proto, path)
    try:
        with random_state_kept():
            module: nn.Module = onnx2torch.convert(copy.deepcopy(proto)).eval()
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"cannot convert {path} ({_first_line(error)}); load it through a factory instead") from error
    _compare(module, session, shape, path)
    return module


def _image_shape(proto: Any, path: Path) -> tuple[int, ...]:
    """(C, H, W) of the one input."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(proto.graph.output) != 1:
        raise ModelError(
            f"{path} has {len(inputs)} inputs and {len(proto.graph.output)} outputs; a classifier has one of each"
        )
    sides = tuple(side.dim_value for side in inputs[0].type.tensor_type.shape.dim)
    if len(sides) != 4 or any(side < 1 for side in sides[1:]):
        raise ModelError(f"{path} takes inputs of shape {sides}; images (N, C, H, W) with fixed C, H, W are needed")
    return sides[1:]


def _compare(module: nn.Module, session: Any, shape: tuple[int, ...], path: Path) -> None:
    """ModelError unless both runtimes give the same logits, one image at a time and as a batch."""
    images = torch.rand(PROBES, *shape, generator=torch.Generator().manual_seed(0))
    name = session.get_inputs()[0].name
    reference = np.concatenate([session.run(None, {name: image[None].numpy()})[0] for image in images])
    try:
        with torch.no_grad():
            single = torch.cat([module(image[None]) for image in images])
            batch = module(images)
    except Exception as error:
        raise ModelError(f"the network converted from {path} does not run ({_first_line(error)})") from error
    scale = 1 + float(np.abs(reference).max())
    for answers in (single, batch):
        if tuple(answers.shape) != reference.shape:
            raise ModelError(
                f"{path} gives outputs {tuple(answers.shape)} in PyTorch, {reference.shape} in onnxruntime"
            )
        deviation = float(np.abs(answers.numpy() - reference).max())
        if not deviation <= TOLERANCE * scale:
            raise ModelError(
                f"the network converted from {path} deviates from onnxruntime by {deviation:.3g}; the conversion is "
                "wrong for this file: load the original through a factory instead"
            )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
