"""Networks on the Hugging Face hub, through the hub's client and its cache. Nothing from the hub is executed."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from robustres.errors import MissingExtraError, ModelError
from robustres.models.networks.normalised import Normalised
from robustres.models.sources.checkpoint import load_checkpoint
from robustres.models.sources.described import described_network, said_by
from robustres.models.sources.transformers_classifier import transformers_network

# Weights as timm stores them; the file that needs no unpickling comes first.
REACHING = frozenset(
    ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "features_only")
)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def hub_model(name: str, weights: Path | None, download: bool) -> nn.Module:
    """The network of a repository ORG/NAME, or of a folder with its files.

    It may contain a checkpoint of robustres (model.safetensors with model.json), a network of timm (config.json names
    an architecture of timm) or an image classifier of transformers (config.json names a model_type, as written by
    `save_pretrained`). The normalisation stated by the last two becomes part of the network. Code in a repository is
    never run; other networks are refused.
    weights: a file to use instead of the repository's.
    download: whether the client may contact the hub; otherwise only its cache on this machine is read.
    """
    repository = _Folder(name) if Path(name).is_dir() else _Repository(name, download)
    if repository.file("model.json") is not None and weights is None:
        return load_checkpoint(repository.required("model.safetensors"))
    config = _json(name, repository.required("config.json"))
    if not isinstance(config.get("architecture") or config.get("model_type"), str):
        raise ModelError(
            f"hf:{name} is not a checkpoint of robustres, and its config.json names neither an architecture of timm "
            "nor a model_type of transformers; build it in your own function and pass package.module:function"
        )
    if weights is None:
        found = [file for file in map(repository.file, WEIGHTS) if file is not None]
        weights = found[0] if found else repository.required(WEIGHTS[0])
    if isinstance(config.get("architecture"), str):
        return _timm_network(name, config, weights)
    images = repository.file("preprocessor_config.json")
    return transformers_network(name, config, {} if images is None else _json(name, images), weights)


def _json(name: str, file: Path) -> dict[str, Any]:
    """A JSON object from a file of the repository; raises ModelError for anything else."""
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"cannot read {file.name} of hf:{name} as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ModelError(f"cannot read {file.name} of hf:{name}: it holds no JSON object")
    return content


def _timm_network(name: str, config: dict[str, Any], weights: Path) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("loading a timm model", "timm") from error
    # A name with a prefix would make timm ask a hub, and some arguments would make it open other files.
    settings = config.get("model_args") or {}
    if (
        not timm.is_model(config["architecture"].split(".")[0])
        or not isinstance(settings, dict)
        or settings.keys() & REACHING
    ):
        raise ModelError(
            f"timm cannot build the {config['architecture']!r} of hf:{name} with {settings!r}: its config.json must "
            "name an architecture of timm, and plain settings of it"
        )

    def build() -> nn.Module:
        network: nn.Module = timm.create_model(
            config["architecture"], pretrained=False, num_classes=config.get("num_classes", 1000), **settings
        )
        return network

    model = described_network(name, "timm", config["architecture"], build, weights)
    statistics = config.get("pretrained_cfg", config)
    mean, std = statistics.get("mean"), statistics.get("std")
    return model if mean is None or std is None else Normalised(model, mean, std)


class _Folder:
    """Files of a repository in a folder of the user."""

    def __init__(self, name: str) -> None:
        self._folder = Path(name)

    def file(self, file: str) -> Path | None:
        """The path of the file; None if it does not exist."""
        path = self._folder / file
        return path if path.is_file() else None

    def required(self, file: str) -> Path:
        """The same; raises ModelError if it is missing."""
        path = self.file(file)
        if path is None:
            raise ModelError(f"the folder {self._folder} has no {file}; `save_pretrained` writes it")
        return path


class _Repository:
    """Files of one repository, each a path in the client's cache."""

    def __init__(self, name: str, download: bool) -> None:
        try:
            import huggingface_hub.errors
        except ImportError as error:
            raise MissingExtraError("loading a model from the Hugging Face hub", "hf") from error
        self._hub, self._name, self._download = huggingface_hub, name, download

    def file(self, file: str) -> Path | None:
        """The path of the file; None if the repository has none, or none is in the cache."""
        errors = self._hub.errors
        try:
            return Path(self._hub.hf_hub_download(self._name, file, local_files_only=not self._download))
        except errors.LocalEntryNotFoundError as error:
            if self._download:
                raise ModelError(
                    f"cannot reach the hub for hf:{self._name} ({said_by(error)}); connect this machine, or fetch the "
                    "repository elsewhere and copy it into the hub's cache"
                ) from error
            return None
        except errors.RepositoryNotFoundError as error:
            raise ModelError(f"the hub has no repository {self._name}, or it is not open to you") from error
        except errors.EntryNotFoundError:
            return None
        except (errors.HfHubHTTPError, OSError, ValueError) as error:
            raise ModelError(f"cannot fetch hf:{self._name} ({said_by(error)}); is this machine online?") from error

    def required(self, file: str) -> Path:
        """The same; raises ModelError if it is missing."""
        found = self.file(file)
        if found is None and self._download:
            raise ModelError(f"hf:{self._name} has no {file}; it is not a network that can be loaded by name")
        if found is None:
            raise ModelError(
                f"{file} of hf:{self._name} is not in the hub's cache on this machine; ask for the download with "
                "--download (download=True)"
            )
        return found
