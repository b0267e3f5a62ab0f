"""One entry for every source of models."""

import hashlib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustres.errors import ModelError
from robustres.models.checkpoint import load_checkpoint
from robustres.models.materialise import materialise
from robustres.models.normalised import Normalised
from robustres.models.onnx_model import load_onnx


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to be attacked and certified.

    module: in evaluation mode, normalisation included. source: the words it was asked for with.
    sha256: digest of all weights and buffers by name. parameters: number of trainable numbers.
    """

    module: nn.Module
    source: str
    sha256: str
    parameters: int


def load_model(
    spec: str | nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> LoadedModel:
    """A classifier of images in [0, 1], from a checkpoint, a factory of yours, an ONNX file, or a module at hand.

    spec: `FILE.safetensors` (with FILE.json), `FILE.onnx`, `package.module:factory` (imported and called: this one
        executes code), or an nn.Module.
    mean, std: the normalisation that the network expects, per channel; it becomes part of the network. Only one given:
        the other is 0 or 1.
    input_shape: (C, H, W) of the images; where given, one image is passed through as a check.
    Raises ModelError, one sentence, where the model cannot be used.
    """
    module, source = (spec, type(spec).__name__) if isinstance(spec, nn.Module) else (_read(spec), spec)
    module = materialise(module)
    if mean is not None or std is not None:
        channels = len(mean if mean is not None else std or ())
        module = Normalised(module, mean or (0.0,) * channels, std or (1.0,) * channels)
    module.eval()
    if input_shape is not None:
        _pass_one_image(module, input_shape, source)
    return LoadedModel(module, source, weights_digest(module), sum(p.numel() for p in module.parameters()))


def weights_digest(module: nn.Module) -> str:
    """sha256 over name, type, shape and content of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def _read(spec: str) -> nn.Module:
    readers: dict[str, Callable[[Path], nn.Module]] = {".safetensors": load_checkpoint, ".onnx": load_onnx}
    reader = readers.get(Path(spec).suffix)
    if reader is not None:
        return reader(Path(spec))
    module_name, colon, attribute = spec.partition(":")
    if colon and module_name and attribute:
        return _call_factory(module_name, attribute)
    raise ModelError(f"a model must be FILE.safetensors, FILE.onnx or package.module:factory, got {spec!r}")


def _call_factory(module_name: str, attribute: str) -> nn.Module:
    """Import, with the working directory on the path as `python -m` has it, and call without arguments."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            factory = getattr(factory, name)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"cannot import {module_name}:{attribute} ({error}); check the name and the path") from error
    try:
        module = factory if isinstance(factory, nn.Module) else factory()
    except Exception as error:
        raise ModelError(f"{module_name}:{attribute} failed with {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{module_name}:{attribute} must return an nn.Module, got {type(module).__name__}")
    return module


def _pass_one_image(module: nn.Module, input_shape: tuple[int, ...], source: str) -> None:
    image = torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(0))
    parameter = next(module.parameters(), None)
    if parameter is not None:
        image = image.to(parameter)
    try:
        with torch.no_grad():
            logits = module(image)
    except ModelError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{source} cannot take images of shape {tuple(input_shape)}: {reason}") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"{source} must return logits of shape (N, classes) with at least 2 classes, got {got}")
