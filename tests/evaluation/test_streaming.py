"""Data larger than memory: an evaluation holds only a few parts of it at a time."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robustres.data import ImageSet
from robustres.evaluation import Settings, evaluate
from robustres.models import LoadedModel

ROOT = Path(__file__).resolve().parents[2]
GIBIBYTE = 2**30
MEASURE = """
import json, resource, sys
import torch
from torch import nn
from robustres.data import load_data
from robustres.evaluation import Settings, evaluate
from robustres.models import LoadedModel

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)).eval()
model = LoadedModel(net, "net", "0", 0)
settings = Settings(eps={"linf": (2 / 255, 8 / 255)}, attacks=("fgsm", "pgd"), attack_settings={"pgd": {"steps": 2}})
small = load_data(sys.argv[1], limit=600)
evaluate(model, small, sys.argv[2] + "/small", settings)
before = peak()
data = load_data(sys.argv[1])
read = peak()
evaluate(model, data, sys.argv[2] + "/all", settings)
json.dump({"samples": len(data), "before": before, "read": read, "after": peak()}, sys.stdout)
"""


@dataclass(eq=False)
class Counted:
    """Images that record how many of them were requested at once."""

    samples: int
    asked: list[int] = field(default_factory=list)

    @property
    def shape(self) -> Sequence[int]:
        """(N, C, H, W)."""
        return self.samples, 1, 8, 8

    def __getitem__(self, index: Tensor, /) -> Tensor:
        self.asked.append(len(index))
        return (index[:, None, None, None] % 17).float().expand(-1, 1, 8, 8) / 16


def test_the_images_are_only_read_part_by_part(tmp_path: Path) -> None:
    pixels = Counted(200)
    data = ImageSet(pixels, torch.arange(200) % 10, tuple("0123456789"), "made")
    pixels.asked.clear()  # building a set reads it in chunks, which is tested elsewhere
    model = LoadedModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), "net", "0", 650)
    settings = Settings(eps={"l2": (0.25,)}, attacks=("fgsm",), part_size=16, diagnose=4)
    run = evaluate(model, data, tmp_path, settings, cache=False)
    assert run.folder.table("samples")["index"].tolist() == list(range(200))
    assert max(pixels.asked) == 16
    assert "images" not in vars(data)


def write_array(folder: Path, samples: int) -> str:
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (samples, 32, 32, 3))
    generator = np.random.default_rng(0)
    for start in range(0, samples, 1000):
        images[start : start + 1000] = generator.integers(0, 256, (min(1000, samples - start), 32, 32, 3), np.uint8)
    images.flush()
    np.save(folder / "labels.npy", np.arange(samples) % 10)
    return f"npy:{folder}"


def write_folder(folder: Path, samples: int) -> str:
    generator = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir()
    for number in range(samples):
        pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / str(number % 10) / f"{number:05d}.png", compress_level=0)
    return f"folder:{folder}"


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_array, write_folder])
def test_sixty_thousand_images_are_evaluated_in_less_than_two_gibibytes(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "data").mkdir()
    spec = write(tmp_path / "data", 60_000)
    command = [sys.executable, "-c", MEASURE, spec, str(tmp_path)]
    found = json.loads(subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout)
    assert found["samples"] == 60_000
    assert found["after"] - found["before"] < 2 * GIBIBYTE
