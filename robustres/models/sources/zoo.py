"""Published networks by name, with weights that are on this machine already, or fetched where that is asked for."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from robustres.errors import MissingExtraError, ModelError
from robustres.models.sources.hub import hub_model
from robustres.models.sources.weights_file import load_weights


def torchvision_model(name: str, weights: Path | None, download: bool) -> nn.Module:
    """A classifier of torchvision.models, with weights from a file, or the default ones from torch's own cache."""
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ModelError(f"torchvision has no classifier {name!r}; a known name is resnet18")
    if weights is not None:
        model: nn.Module = models.get_model(name)
        load_weights(model, weights)
        return model
    default = models.get_model_weights(name).DEFAULT
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(default.url).name
    if not cached.is_file() and not download:
        raise ModelError(_ask("torchvision", name))
    try:
        fetched: nn.Module = models.get_model(name, weights=default)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"cannot fetch the weights of torchvision:{name} ({error}); is this machine online?"
        ) from error
    return fetched


def timm_model(name: str, weights: Path | None, download: bool) -> nn.Module:
    """A classifier of timm, with weights from a file, or its pretrained ones where they may be fetched."""
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("loading a timm model", "timm") from error
    if not timm.is_model(name.split(".")[0]):
        raise ModelError(f"timm has no model {name!r}; a known name is resnet18")
    if weights is None and not download:
        raise ModelError(_ask("timm", name))
    try:
        model: nn.Module = timm.create_model(name, pretrained=weights is None)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"cannot make timm:{name} ({error}); is this machine online?") from error
    if weights is not None:
        load_weights(model, weights)
    return model


def _ask(zoo: str, name: str) -> str:
    return (
        f"the pretrained weights of {zoo}:{name} are not on this machine; ask for the download with --download "
        f"(download=True), or give a file of yours: {zoo}:{name}@weights.pth"
    )


ZOOS: dict[str, Callable[[str, Path | None, bool], nn.Module]] = {
    "torchvision": torchvision_model,
    "timm": timm_model,
    "hf": hub_model,
}
