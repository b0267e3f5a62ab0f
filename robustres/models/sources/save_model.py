"""Writes a network to disk in the form that `load_model` reads, whatever its origin."""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from robustres.errors import ModelError
from robustres.models.networks.materialise import materialise
from robustres.models.networks.normalised import Normalised
from robustres.models.networks.residual_net import ResidualNet
from robustres.models.sources.checkpoint import save_checkpoint
from robustres.models.sources.load_model import load_model
from robustres.results import write_atomically


def save_model(model: nn.Module, folder: Path | str, *, source: str | None = None) -> str:
    """Write model.safetensors into the folder and return the specification with which `load_model` loads it.

    model: a `ResidualNet` (also inside `Normalised`), saved with its architecture as a checkpoint; or any network whose
        weights have the same names and shapes as those of `load_model(source)`, so that SOURCE@FILE loads it. In the
        latter case the normalisation is not in the file and has to be given again.
    Raises ModelError if the weights would not fit.
    """
    folder = Path(folder)
    network = model.model if isinstance(model, Normalised) else model
    if isinstance(network, ResidualNet):
        return str(save_checkpoint(model, folder / "model.safetensors"))
    if source is None:
        raise ModelError(f"a {type(network).__name__} can only be saved with the source that builds it again")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in materialise(network).state_dict().items()}
    builder = source.partition("@")[0]
    built = load_model(source).module
    built = built.model if isinstance(built, Normalised) else built
    expected = {name: tensor.shape for name, tensor in built.state_dict().items()}
    if {name: tensor.shape for name, tensor in plain.items()} != expected:
        raise ModelError(
            f"the weights no longer have the names and shapes that {builder} builds, so it cannot load them"
        )
    file = folder / "model.safetensors"
    write_atomically(file, save({name: torch.clone(tensor) for name, tensor in plain.items()}))
    return f"{builder}@{file}"
