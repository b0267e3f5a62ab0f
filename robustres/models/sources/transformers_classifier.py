"""Image classifiers of transformers as networks from images to logits."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustres.errors import MissingExtraError, ModelError
from robustres.models.networks.normalised import Normalised
from robustres.models.sources.described import described_network

# Settings that would make transformers run code of a repository, compile kernels or read other files.
REACHING = frozenset(
    {"auto_map", "quantization_config", "attn_implementation", "experts_implementation", "torch_dtype"}
)
LABELS = frozenset({"id2label", "label2id", "num_labels"})
# Kinds whose architecture another library defines.
FOREIGN = frozenset({"timm_wrapper"})


class Logits(nn.Module):
    """A classifier whose result has `logits`, as a function from images (N, C, H, W) to logits (N, classes)."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(pixel_values=x).logits
        return logits


def logits_only(module: nn.Module) -> nn.Module:
    """The module, wrapped in `Logits` if it is a model of transformers."""
    library = sys.modules.get("transformers")
    return Logits(module) if library is not None and isinstance(module, library.PreTrainedModel) else module


def transformers_network(name: str, config: Mapping[str, Any], images: Mapping[str, Any], weights: Path) -> nn.Module:
    """The classifier that config.json describes, with weights from a file; only classes of transformers are used.

    config: the contents of config.json. images: the contents of preprocessor_config.json, empty if there is none; its
    scale, mean and std become part of the network, for images in [0, 1]. Cropping and resizing are left to the data.
    Raises ModelError if transformers has no image classifier of that kind, or if it cannot be built as described.
    """
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KINDS
    except ImportError as error:
        raise MissingExtraError("loading an image classifier of transformers", "transformers") from error
    kind = config.get("model_type")
    if kind not in KINDS or kind in FOREIGN:
        raise ModelError(
            f"hf:{name} is a model of the type {kind!r}, for which transformers has no image classifier; build it in "
            "your own function and pass package.module:function"
        )
    settings = _plain(name, {key: value for key, value in config.items() if key not in LABELS | {"model_type"}})
    if isinstance(labels := config.get("id2label"), Mapping):
        settings["num_labels"] = len(labels)

    def build() -> nn.Module:
        described = AutoConfig.for_model(kind, **settings)
        network: nn.Module = AutoModelForImageClassification.from_config(described, attn_implementation="eager")
        return network.float()

    model = described_network(name, "transformers", str(kind), build, weights)
    return _normalised(name, Logits(model), images)


def _plain(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, including nested ones, without those that reach outside the network; refuses hub names."""
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        if key.startswith("_") or key in REACHING:
            continue
        if isinstance(value, str) and "/" in value:
            raise ModelError(
                f"config.json of hf:{name} refers to {value!r} in {key}; only settings of its own are read"
            )
        kept[key] = _plain(name, value) if isinstance(value, Mapping) else value
    return kept


def _normalised(name: str, model: nn.Module, images: Mapping[str, Any]) -> nn.Module:
    """The model on images in [0, 1], with the scale and the 8-bit statistics stated by its processor."""
    scale = 255.0 * (images.get("rescale_factor", 1 / 255) if images.get("do_rescale", True) else 1.0)
    offset = 1.0 if images.get("rescale_offset") else 0.0
    stated: tuple[Any, Any] = ([0.0], [1.0])
    if images and images.get("do_normalize", True):
        stated = images.get("image_mean"), images.get("image_std")
    try:
        mean = [(offset + float(value)) / scale for value in stated[0]]
        std = [float(value) / scale for value in stated[1]]
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"preprocessor_config.json of hf:{name} contains no usable mean and std; build the network in "
            "your own function and pass package.module:function"
        ) from error
    identity = all(value == 0 for value in mean) and all(abs(value - 1) < 1e-12 for value in std)
    return model if identity else Normalised(model, mean, std)
