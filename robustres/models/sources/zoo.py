"""Published networks by name, with weights that are already on this machine, or downloaded on request."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustres.errors import MissingExtraError, ModelError
from robustres.models.networks.normalised import Normalised
from robustres.models.sources.hub import WEIGHTS, hub_model
from robustres.models.sources.robustbench_zoo import robustbench_model
from robustres.models.sources.weights_file import load_weights


def torchvision_model(name: str, weights: Path | None, download: bool) -> nn.Module:
    """A classifier of torchvision.models, with weights from a file, or the default ones from torch's own cache.

    The default weights include the normalisation used in their training; with a file, the caller gives it.
    """
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
    return _with_statistics(fetched, default.transforms())


def timm_model(name: str, weights: Path | None, download: bool) -> nn.Module:
    """A classifier of timm, with weights from a file, or its pretrained ones from the hub's cache.

    The pretrained weights include the normalisation used in their training; with a file, the caller gives it.
    download: whether they may be downloaded if they are not in the cache.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("loading a timm model", "timm") from error
    if not timm.is_model(name.split(".")[0]):
        raise ModelError(f"timm has no model {name!r}; a known name is resnet18")
    cached = _cached(timm.get_pretrained_cfg(name, allow_unregistered=True)) if weights is None else None
    if weights is None and cached is None and not download:
        raise ModelError(_ask("timm", name))
    file = weights or cached
    try:
        model: nn.Module = timm.create_model(name, pretrained=file is None)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"cannot create timm:{name} ({error}); is this machine online?") from error
    if file is not None:
        load_weights(model, file)
    return model if weights is not None else _with_statistics(model, timm.get_pretrained_cfg(name))


def _cached(published: Any) -> Path | None:
    """The weights file named by timm, if it is in the cache of the hub's client on this machine."""
    repository = getattr(published, "hf_hub_id", None)
    if repository is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    names = (published.hf_hub_filename,) if published.hf_hub_filename else WEIGHTS
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _with_statistics(model: nn.Module, published: Any) -> nn.Module:
    """The model on images in [0, 1], with the mean and std published with its weights."""
    mean, std = (getattr(published, word, None) for word in ("mean", "std"))
    return model if mean is None or std is None else Normalised(model, mean, std)


def _ask(zoo: str, name: str) -> str:
    return (
        f"the pretrained weights of {zoo}:{name} are not on this machine; ask for the download with --download "
        f"(download=True), or give a file of yours: {zoo}:{name}@weights.pth"
    )


ZOOS: dict[str, Callable[[str, Path | None, bool], nn.Module]] = {
    "torchvision": torchvision_model,
    "timm": timm_model,
    "hf": hub_model,
    "robustbench": robustbench_model,
}
