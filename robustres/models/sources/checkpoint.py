"""Networks on disk: the weights as safetensors, and the architecture as JSON in the same folder. Reading never executes
code.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robustres.errors import ModelError
from robustres.models.networks.materialise import materialise, without_parametrisations
from robustres.models.networks.normalised import Normalised
from robustres.models.networks.residual_net import Architecture, ResidualNet
from robustres.results import write_atomically

FORMAT, VERSION = "robustres checkpoint", 1
# Limits: a lower bound on the size of a network relative to its file, sizes of images, and values between two layers.
SLACK, MOST_PIXELS, MOST_VALUES = 4, 2**14, 2**30


@dataclass(frozen=True)
class Description:
    """The contents of the JSON file next to the weights: how to build the network that they fit."""

    architecture: Architecture
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def build(self) -> nn.Module:
        """The network with plain, uninitialised weights."""
        network = without_parametrisations(ResidualNet(self.architecture))
        return network if self.mean is None or self.std is None else Normalised(network, self.mean, self.std)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        statistics = None if self.mean is None or self.std is None else {"mean": self.mean, "std": self.std}
        return {
            "format": FORMAT,
            "version": VERSION,
            "architecture": self.architecture.as_dict(),
            "normalisation": statistics,
        }

    @classmethod
    def from_json(cls, values: Any) -> "Description":
        """The inverse of `to_json`; raises ModelError if the JSON is not a description."""
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ModelError(f"the JSON is not a description of a network (its format must be {FORMAT!r})")
        if values.get("version") != VERSION:
            raise ModelError(f"the description has version {values.get('version')}, this robustres reads {VERSION}")
        statistics = values.get("normalisation") or {}
        if not isinstance(values.get("architecture"), dict) or not isinstance(statistics, dict):
            raise ModelError("the description has no architecture; write it with save_checkpoint")
        mean, std = (tuple(statistics[key]) if key in statistics else None for key in ("mean", "std"))
        return cls(Architecture.from_dict(values["architecture"]), mean, std)


def save_checkpoint(model: nn.Module, path: str | Path) -> Path:
    """Write PATH (.safetensors) and its JSON; a network in training is materialised first. Returns the path of the
    weights.

    model: a `ResidualNet`, or one inside `Normalised`. Other modules have no description: load them with `load_model`
        through your own factory instead.
    """
    file = Path(path).with_suffix(".safetensors")
    network = model.model if isinstance(model, Normalised) else model
    if not isinstance(network, ResidualNet):
        raise ModelError(
            f"only networks of residual_net can be saved with their architecture, got {type(network).__name__}; load "
            "other models through package.module:factory"
        )
    description = Description(network.architecture)
    if isinstance(model, Normalised):
        mean, std = (tuple(buffer.flatten().tolist()) for buffer in (model.mean, model.std))
        description = Description(network.architecture, mean, std)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in materialise(model).state_dict().items()}
    write_atomically(file, save(tensors))
    write_atomically(file.with_suffix(".json"), (json.dumps(description.to_json(), indent=2) + "\n").encode())
    return file


def load_checkpoint(path: str | Path) -> nn.Module:
    """The network written by `save_checkpoint`, in evaluation mode; raises ModelError for anything else."""
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"there is no checkpoint {file}; check the path")
    tensors = read_tensors(file)
    description = _read_description(file.with_suffix(".json"))
    _require_same_size(description.architecture, tensors, file)
    try:
        model = description.build()
    except ModelError:
        raise
    except Exception as error:  # any error of torch about the description
        raise ModelError(f"{file.with_suffix('.json')} describes no network that can be built ({error})") from error
    load_tensors(model, tensors, str(file))
    return model.eval()


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises ModelError if it is damaged."""
    try:
        return dict(load_file(file))
    except Exception as error:  # including types that the format defines but torch does not support
        raise ModelError(
            f"cannot read {file} as safetensors ({error}); the file is damaged or of another kind"
        ) from error


def load_tensors(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Fill the model; raises ModelError that names tensors that are missing, superfluous, of another shape or not
    finite.

    The number of batches that a batch normalisation has seen does not affect the outputs: files of old versions and
    converted ones do not contain it.
    """
    expected = model.state_dict()
    counts = {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")}
    tensors = {**counts, **tensors}
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        parts = [
            f"{word} {', '.join(names[:3])}" for word, names in (("lacks", missing), ("has unknown", extra)) if names
        ]
        raise ModelError(f"{source} does not fit its architecture: it {' and '.join(parts)}")
    for name, value in expected.items():
        if tensors[name].shape != value.shape:
            raise ModelError(
                f"{source} does not fit its architecture: {name} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(value.shape)}"
            )
        if tensors[name].layout is not torch.strided or tensors[name].is_meta or tensors[name].is_quantized:
            raise ModelError(f"{source} holds {name} as a sparse, quantised or empty (meta) tensor; save plain numbers")
        if not torch.isfinite(tensors[name]).all():
            raise ModelError(f"{source} holds NaN or infinite values in {name}; train or export the network again")
    model.load_state_dict(tensors)


def _require_same_size(architecture: Architecture, tensors: dict[str, Tensor], file: Path) -> None:
    """Raise ModelError, before the network is built, if these weights cannot fill a network of this description.

    A lower bound on the number of its weights must not be much larger than their number in the file.
    """
    given = sum(tensor.numel() for tensor in tensors.values())
    try:
        channels, height, width = architecture.image_shape
        halvings = 2 ** len(architecture.downsample)
        side = architecture.pool or min(height, width) // architecture.stem_stride // halvings
        least = {
            "blocks": architecture.depth * architecture.width**2,
            "the stem": architecture.width * channels * architecture.stem_kernel**2,
            "the kernels": architecture.width * architecture.kernel**2 * min(architecture.depth, 1),
            "the head": architecture.classes * max(1, side),
            "later widths": sum(width**2 for width in (*architecture.widths, *architecture.dense)),
            "transitions": architecture.width**2 * halvings if architecture.downsample else 0,
        }
        sizes = (*architecture.image_shape, architecture.stem_stride, *architecture.downsample)
        moderate = all(0 <= size <= MOST_PIXELS for size in sizes)
        moderate = moderate and architecture.width * height * width <= MOST_VALUES
    except Exception as error:  # the fields may be anything
        raise ModelError(f"{file.with_suffix('.json')} has fields of the wrong kind ({error})") from error
    for what, number in least.items():
        if number > SLACK * given:
            raise ModelError(
                f"{file} does not fit its architecture: {what} would hold {number} numbers, the file has {given}"
            )
    if architecture.depth > len(tensors) or not moderate:
        raise ModelError(
            f"{file} does not fit its architecture: {architecture.depth} blocks on images {architecture.image_shape} "
            f"are not what {len(tensors)} tensors describe"
        )


def _read_description(file: Path) -> Description:
    if not file.is_file():
        raise ModelError(f"there is no {file.name} beside the weights; a checkpoint is a .safetensors and its .json")
    try:
        values = json.loads(file.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"cannot read {file} as JSON ({error})") from error
    return Description.from_json(values)
