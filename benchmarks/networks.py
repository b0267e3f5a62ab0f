"""Networks of different kinds for comparing attacks, used by `benchmarks/strong.py` and `benchmarks/masking.py`.

All except resnet_2b are trained here on the embedded digits, in a minute on one core, and saved in a folder.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustres.attacks import DDN, FMN
from robustres.cli.demo import NETWORKS, recipe_of
from robustres.data import ImageSet, load_data
from robustres.models import load_model, preset, save_checkpoint
from robustres.threat import Norm, ThreatModel
from robustres.training import Recipe, train

SHARED = Path(os.environ.get("ROBUSTRES_SHARED", Path(__file__).resolve().parents[2] / "shared"))


MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def load(shared: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """VNN-COMP 2021's resnet_2b and its images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_model(str(shared / "models" / "resnet_2b.onnx"), mean=MEAN, std=STD, input_shape=(3, 32, 32))
    folder = shared / "data" / "cifar10-100"
    x = torch.from_numpy(np.load(folder / "images.npy")).permute(0, 3, 1, 2).float().div(255).contiguous()
    return model.module, x, torch.from_numpy(np.load(folder / "labels.npy")).long()


class Altered(nn.Module):
    """The network with functions applied to its images and its logits."""

    def __init__(
        self, model: nn.Module, *, before: Callable[[Tensor], Tensor] | None = None, factor: float = 1
    ) -> None:
        super().__init__()
        self.model, self.before, self.factor = model, before, factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.factor * self.model(x if self.before is None else self.before(x))
        return logits


class Noisy(nn.Module):
    """The network plus fixed, fine noise on every logit, small compared with the logits but large in the gradient."""

    def __init__(self, model: nn.Module, size: int, classes: int, height: float) -> None:
        super().__init__()
        self.model, self.height = model, height
        waves = torch.randn(size, classes, generator=torch.Generator().manual_seed(0))
        self.register_buffer("waves", 100 * waves)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x) + self.height * torch.sin(x.flatten(1) @ self.waves)
        return logits


class Residual(nn.Module):
    """Two residual blocks with batch normalisation, for digits (1, 8, W)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1)
        self.first, self.second = self._branch(), self._branch()
        self.head = nn.Linear(24 * 4 * width // 2, classes)

    def _branch(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(24, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
        )

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.stem(x))
        z = torch.relu(z + self.first(z))
        z = nn.functional.avg_pool2d(torch.relu(z + self.second(z)), 2)
        logits: Tensor = self.head(z.flatten(1))
        return logits


def pairs(digits: ImageSet, count: int) -> ImageSet:
    """Two digits side by side, (1, 8, 16), as one of a hundred classes."""
    chosen = torch.randint(len(digits), (count, 2), generator=torch.Generator().manual_seed(0))
    images = torch.cat([digits.images[chosen[:, 0]], digits.images[chosen[:, 1]]], dim=3)
    labels = 10 * digits.labels[chosen[:, 0]] + digits.labels[chosen[:, 1]]
    return load_data((images, labels))


@dataclass(frozen=True)
class Network:
    """A network with images (N, C, H, W) and labels."""

    model: nn.Module
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Case:
    """The network, images and threat of a comparison; tuned: whether the settings of `strong` were chosen on it."""

    network: str
    norm: Norm
    eps: float
    tuned: bool

    @property
    def name(self) -> str:
        eps = f"{round(self.eps * 255)}/255" if "resnet_2b" in self.network and self.norm == "linf" else f"{self.eps:g}"
        return f"{self.network}, {self.norm} {eps}"

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(self.norm, self.eps)


CASES = (
    Case("resnet_2b", "linf", 2 / 255, True),
    Case("resnet_2b", "linf", 8 / 255, True),
    Case("resnet_2b", "l2", 0.3, True),
    Case("resnet_2b", "l1", 6.0, True),
    Case("resnet_2b rippled", "linf", 4 / 255, True),
    Case("plain", "linf", 0.1, True),
    Case("constrained", "l2", 0.6, True),
    Case("resnet_2b", "linf", 4 / 255, False),
    Case("resnet_2b times 100", "linf", 4 / 255, False),
    Case("resnet_2b over 100", "l2", 0.5, False),
    Case("adversarially trained", "linf", 0.15, False),
    Case("residual", "l1", 1.0, False),
    Case("noisy residual", "linf", 0.08, False),
    Case("100 classes", "l2", 0.5, False),
)
CONTESTED = (0.7, 1.4)  # times eps: range of the distance of a sample's nearest known example
SAMPLES = 10


def trained(name: str, folder: Path) -> nn.Module:
    """A network for the digits, loaded from the folder if it is already there."""
    file = folder / f"{name}.pt"
    torch.manual_seed(0)
    digits, held = load_data("digits", split="train"), load_data("digits", split="validation")
    if name in NETWORKS:
        if not file.is_file():
            model = preset(NETWORKS[name], seed=0)
            train(model, digits, held, recipe_of(name, 0))
            save_checkpoint(model, file.with_suffix(".safetensors"))
            torch.save(None, file)
        return load_model(str(file.with_suffix(".safetensors"))).module.eval()
    model = Residual(100, 16) if name == "100 classes" else Residual(10, 8)
    if not file.is_file():
        recipe = Recipe(loss="adversarial", norm="linf", eps=0.1, epochs=12, seed=0)
        if name == "100 classes":
            digits, held = pairs(digits, 4000), pairs(held, 300)
            recipe = Recipe(loss="clean", epochs=3, seed=0)
        train(model, digits, held, recipe)
        torch.save(model.state_dict(), file)
    model.load_state_dict(torch.load(file))
    return model.eval()


def network(name: str, folder: Path) -> Network:
    """A network by name, with all available images."""
    if name.startswith("resnet_2b"):
        model, x, y = load(SHARED)
        wrapped = {
            "resnet_2b": model,
            "resnet_2b times 100": Altered(model, factor=100),
            "resnet_2b over 100": Altered(model, factor=0.01),
            "resnet_2b rippled": Altered(model, before=lambda image: image + 0.02 * torch.sin(200 * image)),
        }
        return Network(wrapped[name].eval().requires_grad_(False), x, y)
    digits = load_data("digits", split="test")
    if name == "100 classes":
        digits = pairs(digits, 300)
    model = Noisy(trained("residual", folder), 64, 10, 0.3) if name == "noisy residual" else trained(name, folder)
    return Network(model.eval().requires_grad_(False), digits.images, digits.labels)


def contested(case: Case, folder: Path, samples: int = SAMPLES) -> Network:
    """The network of the case with the first `samples` images, among 10 `samples`, on which attacks may differ.

    These are the images whose nearest example, as found by a minimum-norm attack on the unmasked network, lies near
    eps.
    """
    honest = network(case.network.replace(" rippled", "").replace("noisy ", ""), folder)
    x, y = honest.x[: 10 * samples], honest.y[: 10 * samples]
    with torch.no_grad():
        right = honest.model(x).argmax(dim=1) == y
    x, y = x[right], y[right]
    nearest = DDN if case.norm == "l2" else FMN
    away = nearest(ThreatModel(case.norm, math.inf), steps=60)(honest.model, x, y).distance / case.eps
    near = ((away > CONTESTED[0]) & (away < CONTESTED[1])).nonzero().flatten()[:samples]
    return Network(network(case.network, folder).model, x[near], y[near])


def all_cases(folder: Path, *, only: str = "", samples: int = SAMPLES) -> Iterator[tuple[Case, Network]]:
    """Every case, or those whose name contains `only`."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if only in case.name:
            yield case, contested(case, folder, samples)
