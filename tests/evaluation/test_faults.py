"""Faults while a run is written or read: they are named, and the same command repairs them."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustres.certify import lipschitz
from robustres.data import ImageSet, load_data
from robustres.errors import InputError, StorageError
from robustres.evaluation import Settings, evaluate
from robustres.evaluation.bound_store import BoundStore
from robustres.models import LoadedModel, load_model
from robustres.results import RunFolder

SETTINGS = Settings(eps={"l2": (0.25,)}, attacks=("fgsm",), part_size=8)
FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    (tmp_path / "fault_net.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sys.modules.pop("fault_net", None)
    return load_model("fault_net:net")


@pytest.fixture
def data() -> ImageSet:
    return load_data("digits", limit=24)


def tables(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "parts").iterdir())}


def test_a_full_disk_is_named_and_the_same_call_continues_from_there(
    model: LoadedModel, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(model, data, tmp_path / "whole", SETTINGS)
    real, written = os.fsync, [0]

    def full(descriptor: int) -> None:
        written[0] += 1
        if written[0] > 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left.*free some space"):
        evaluate(model, data, tmp_path / "cut", SETTINGS)
    monkeypatch.setattr(os, "fsync", real)
    left = tables(tmp_path / "cut")
    assert left
    assert not [name for name in left if name.endswith(".partial")]
    evaluate(model, data, tmp_path / "cut", SETTINGS)
    assert tables(tmp_path / "cut") == tables(tmp_path / "whole")


@pytest.mark.parametrize("damage", [b"", b"PAR1 and then nothing"])
def test_a_damaged_part_is_refused_by_readers_and_recomputed_by_the_run(
    model: LoadedModel, data: ImageSet, tmp_path: Path, damage: bytes
) -> None:
    evaluate(model, data, tmp_path / "run", SETTINGS)
    whole = tables(tmp_path / "run")
    name = next(name for name in whole if name.startswith("attacks-"))
    (tmp_path / "run" / "parts" / name).write_bytes(damage)
    with pytest.raises(InputError, match=rf"{name} is damaged.*same command"):
        RunFolder(tmp_path / "run").table("attacks")
    evaluate(model, data, tmp_path / "run", SETTINGS)
    assert tables(tmp_path / "run") == whole


class OneBroken(nn.Module):
    """Return NaN for the image of all ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(x.flatten(1))
        return torch.where((x.flatten(1) == 1).all(1, keepdim=True), torch.nan, logits)


def test_one_broken_sample_of_ten_thousand_is_reported_and_the_rest_continues(tmp_path: Path) -> None:
    images = torch.rand(10_000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[7777] = 1
    data = ImageSet(images, torch.arange(10_000) % 10, tuple("0123456789"), "made", "")
    model = LoadedModel(OneBroken().eval(), "OneBroken", "0", 650)
    settings = Settings(eps={"l2": (0.1,)}, attacks=("fgsm",), certify=False, keep_going=True)
    evaluate(model, data, tmp_path, settings)
    samples = RunFolder(tmp_path).table("samples")
    assert samples.index[~samples["finite"]].tolist() == [7777]
    assert len(samples) == 10_000


class Normalising(nn.Module):
    """Subtract the mean from the images, in place or not."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.in_place = nn.Linear(64, 10), in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer((x.sub_(0.5) if self.in_place else x - 0.5).flatten(1))
        return logits


def test_a_network_that_modifies_its_input_in_place_gets_the_same_results(tmp_path: Path) -> None:
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = ImageSet(images, torch.arange(20) % 10, tuple("0123456789"), "made", "")
    settings = Settings(eps={"l2": (0.1,)}, attacks=("fgsm", "pgd", "square"), attack_settings={"square": {"steps": 5}})
    tables = []
    for in_place in (False, True):
        folder = tmp_path / str(in_place)
        evaluate(LoadedModel(Normalising(in_place=in_place).eval(), "made", "0", 650), data, folder, settings)
        tables.append({name: RunFolder(folder).table(name) for name in ("samples", "attacks", "certificates")})
    for name, table in tables[0].items():
        assert table.equals(tables[1][name]), name
    assert len(tables[0]["certificates"]) == 20


def small(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), activation, nn.Linear(8, 3)).eval()


def test_stored_bounds_are_reused_for_the_same_network_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BoundStore((tmp_path / "a", tmp_path / "b"))
    first = lipschitz(small(nn.ReLU()), (1, 4, 4), store=store)
    changed = small(nn.ReLU())
    with torch.no_grad():
        changed[1].weight.mul_(2)  # type: ignore[operator, union-attr]
    for other in (changed, small(nn.LeakyReLU(3.0))):
        assert lipschitz(other, (1, 4, 4), store=store).upper == lipschitz(other, (1, 4, 4)).upper

    def never(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("a bound was computed that was known")

    monkeypatch.setattr("robustres.certify.bounds.pieces.spectral_norm", never)
    again = lipschitz(small(nn.ReLU()), (1, 4, 4), store=store)
    assert (again.upper, again.lower, again.guarantee) == (first.upper, first.lower, first.guarantee)
    assert again.to_frame().equals(first.to_frame())


def test_a_damaged_stored_bound_is_recomputed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = BoundStore((tmp_path,))
    first = lipschitz(small(nn.ReLU()), (1, 4, 4), store=store)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace("upper", "lower"))
    assert lipschitz(small(nn.ReLU()), (1, 4, 4), store=store).upper == first.upper
    assert "damaged" in caplog.text


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_a_run_keeps_all_its_files(
    model: LoadedModel, data: ImageSet, tmp_path: Path, overwrite: bool
) -> None:
    for name in ("summary.json", "report.md", "samples.csv", "run.json", "parts", "figures"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        if "." in name:
            (folder / name).write_text('{"mine": 1}')
        else:
            (folder / name).mkdir()
            (folder / name / "attacks-0.parquet").write_text("mine")
        before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        with pytest.raises(InputError, match="not written by this command"):
            evaluate(model, data, folder, SETTINGS, overwrite=overwrite)
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_manifest_changed_after_the_end_of_the_run_is_refused_by_the_same_call(
    model: LoadedModel, data: ImageSet, tmp_path: Path
) -> None:
    evaluate(model, data, tmp_path, SETTINGS)
    manifest = RunFolder(tmp_path).manifest()
    RunFolder(tmp_path).write_manifest({**manifest, "lipschitz": {"norm": "l2", "upper": 1.0, "lower": 1.0}})
    with pytest.raises(InputError, match="changed after the run ended"):
        evaluate(model, data, tmp_path, SETTINGS)
    evaluate(model, data, tmp_path, SETTINGS, overwrite=True)
    assert RunFolder(tmp_path).digest() is not None
