"""Plain files of weights for a network that something else builds. Reading them never executes code."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustres.errors import ModelError
from robustres.models.sources.archive import Archive
from robustres.models.sources.checkpoint import load_tensors, read_tensors

# Names under which training scripts keep the weights inside their checkpoints.
NESTED = ("state_dict", "model_state_dict", "model")
# What stands before every name where the network was wrapped: for several GPUs, compiled, or with a normalisation.
WRAPPERS = ("", "module.", "_orig_mod.", "model.", "module.model.", "module._orig_mod.", "_orig_mod.module.")


def load_weights(module: nn.Module, file: Path) -> None:
    """Fill the module from a .safetensors file or a state_dict saved by torch (.pt, .pth), exactly; else ModelError."""
    if not file.is_file():
        raise ModelError(f"there is no file of weights {file}; check the path")
    tensors = read_tensors(file) if file.suffix == ".safetensors" else _read_state_dict(file)
    load_tensors(module, _without_wrapper(tensors, set(module.state_dict())), str(file))


def _without_wrapper(tensors: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """The tensors without what a wrapper put before every name, where that makes the names fit."""
    for prefix in WRAPPERS:
        if {name.removeprefix(prefix) for name in tensors} == expected:
            return {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _read_state_dict(file: Path) -> dict[str, Tensor]:
    """With weights_only: a pickle that would execute anything is refused by torch itself."""
    if zipfile.is_zipfile(file):
        Archive(file, "plain weights")  # refuses what would unpack to more than the file's size
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"cannot read {file} as plain weights ({reason}); save model.state_dict() with torch.save or safetensors"
        ) from error
    for name in NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{file} holds no state_dict; save model.state_dict() with torch.save or safetensors")
    return {str(name): value for name, value in content.items()}
