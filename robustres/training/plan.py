"""A training run as described by a user: the network and the recipe, from a file and from individual settings."""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from robustres.data import ImageSet
from robustres.errors import InputError, ModelError
from robustres.models import Architecture, build, load_model
from robustres.models.networks.normalised import normalised
from robustres.models.networks.presets import PRESETS
from robustres.results import write_atomically
from robustres.training.enforce import enforce
from robustres.training.recipe import Recipe
from robustres.training.recipes import RECIPES


@dataclass(frozen=True)
class Plan:
    """Network and recipe of one run. Exactly one of the first two fields says what is trained.

    architecture: fields of `Architecture`; image_shape and classes may be left to the data.
    source: a model for `load_model`, to be trained further.
    """

    architecture: dict[str, Any] | None
    source: str | None
    recipe: Recipe

    def build(
        self,
        data: ImageSet,
        *,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        download: bool = False,
    ) -> nn.Module:
        """The network for these images, its normalisation (per channel) included; raises ModelError if they do not fit.

        If the recipe has a layer_budget, every layer is brought below it and stays there during training.
        download: whether published weights named by the source may be downloaded.
        """
        network = self._built(data, mean, std, download=download)
        if not self.recipe.layer_budget:
            return network
        shape = data.image_shape
        return enforce(network, lipschitz=self.recipe.layer_budget, input_shape=shape, trainable=True)

    def _built(
        self, data: ImageSet, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, *, download: bool
    ) -> nn.Module:
        """The network as described or stored."""
        if self.source is not None:
            module = load_model(self.source, mean=mean, std=std, input_shape=data.image_shape, download=download).module
            if not any(parameter.requires_grad for parameter in module.parameters()):
                raise ModelError(f"{self.source} has no parameters that can be trained")
            return module
        described = {"image_shape": data.image_shape, "classes": data.classes, **(self.architecture or {})}
        architecture = Architecture.from_dict(described)
        wanted, found = (architecture.image_shape, architecture.classes), (data.image_shape, data.classes)
        if wanted != found:
            raise ModelError(
                f"the network is made for images {wanted[0]} and {wanted[1]} classes but {data.source} has {found[0]} "
                f"and {found[1]}; choose another preset, or write an [architecture] without image_shape and classes"
            )
        return normalised(build(architecture, seed=self.recipe.seed), mean, std)

    def write(self, file: Path) -> None:
        """As TOML, so that `plan_of(None, file, {})` gives this plan again."""
        lines = [f"network = {_toml(self.source)}"] if self.source is not None else []
        tables = {"architecture": self.architecture, "recipe": self.recipe.as_dict()}
        for name, values in tables.items():
            if values is not None:
                lines += [
                    f"[{name}]",
                    *(f"{key} = {_toml(value)}" for key, value in values.items() if value is not None),
                ]
        write_atomically(file, ("\n".join(lines) + "\n").encode())


def plan_of(network: str | None, file: Path | None, settings: dict[str, Any]) -> Plan:
    """The plan from a preset's name or a model's source, a TOML file, and individual settings, later ones taking
    precedence.

    The file contains the fields of `Recipe`, at the top level or in a table [recipe], and may name the network:
    `network = NAME` or a table [architecture] with the fields of `Architecture`. Without a file, a preset uses the
    recipe of its name, if there is one. Raises InputError for unknown, missing or contradictory settings.
    """
    written = _read(file) if file is not None else {}
    named, architecture = written.pop("network", None), written.pop("architecture", None)
    values = written.pop("recipe", written)
    if values is not written and written:
        raise InputError(f"{file} has {', '.join(written)} beside its table [recipe]; put every setting into the table")
    if network is not None:
        named, architecture = network, None
    if (named is None) == (architecture is None):
        raise InputError(
            "name one network: a preset or a model as the first argument, or in the recipe file either network = NAME "
            "or a table [architecture]"
        )
    preset = named in PRESETS
    start = RECIPES[named] if preset and file is None and named in RECIPES else Recipe.from_dict(values)
    recipe = Recipe.from_dict({**start.as_dict(), **settings})
    if preset:
        return Plan({field.name: getattr(PRESETS[named], field.name) for field in fields(Architecture)}, None, recipe)
    if architecture is not None:
        return Plan(dict(architecture), None, recipe)
    if not isinstance(named, str) or not (":" in named or Path(named).suffix in {".safetensors", ".onnx"}):
        raise InputError(
            f"the network must be a preset ({', '.join(PRESETS)}) or a model such as package.module:factory, "
            f"got {named!r}"
        )
    return Plan(None, named, recipe)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot read the recipe {file} ({error})") from error


def _toml(value: Any) -> str:
    """A plain value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)
