"""Small networks, images and the real network that the attack tests share."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustres.models import load_model
from robustres.threat import Norm, ThreatModel


class Case(NamedTuple):
    """A model in evaluation mode, with images in [0, 1] and labels that it predicts correctly."""

    model: nn.Module
    x: Tensor
    y: Tensor


class Residual(nn.Module):
    """Convolution, one residual block with batch normalisation and dropout, linear head; random weights."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        z = self.stem(x)
        z = torch.relu(z + self.branch(z))
        logits: Tensor = self.head(z.mean(dim=(2, 3)))
        return logits * 20


def make_case(*, classes: int = 4, count: int = 12, dtype: torch.dtype = torch.float32) -> Case:
    """A random residual network with random images, labelled by its own, roughly balanced predictions."""
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        model = Residual(classes).to(dtype).eval()
        x = torch.rand(count, 3, 8, 8).to(dtype)
    with torch.no_grad():
        model.head.bias -= model(x).mean(dim=0) / 20
        return Case(model, x, model(x).argmax(dim=1))


# Attacks that are not defined in linf, by name.
ONLY: dict[str, Norm] = {"ddn": "l2", "superdeepfool": "l2", "sigma-zero": "l0"}


def threat_for(name: str, *, linf: float, l2: float, l0: float = 20) -> ThreatModel:
    """The ball of an attack in linf, or in the norm for which it is defined."""
    norm = ONLY.get(name, "linf")
    return ThreatModel(norm, {"linf": linf, "l2": l2, "l0": l0}[norm])


@pytest.fixture
def small() -> Case:
    return make_case()


class Recorded(nn.Module):
    """Record every batch on which the model is run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        logits: Tensor = self.model(x)
        return logits


class Normalised(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2471, 0.2435, 0.2616]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits


@pytest.fixture(scope="session")
def resnet(shared: Path) -> Case:
    """VNN-COMP 2021's resnet_2b with 100 CIFAR-10 images, of which it classifies 86 correctly."""
    pytest.importorskip("onnxruntime")
    model = Normalised(load_model(str(shared / "models" / "resnet_2b.onnx")).module).eval()
    folder = shared / "data" / "cifar10-100"
    x = torch.from_numpy(np.load(folder / "images.npy")).permute(0, 3, 1, 2).float().div(255).contiguous()
    return Case(model, x, torch.from_numpy(np.load(folder / "labels.npy")).long())
