"""What a run folder holds: every column and every fact that a reader years later needs."""

from dataclasses import fields

import pytest
import torch
from torch import nn

from robustres.certify import RandomisedSmoothing
from robustres.data import load_data
from robustres.evaluation import Run, Settings, evaluate
from robustres.models import load_model

SETTINGS = Settings(
    eps={"linf": (0.1,)},
    attacks=("fgsm", "fmn"),
    part_size=8,
    smoothing=RandomisedSmoothing(0.5, selection_samples=10, estimation_samples=20),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    data = load_data("digits", limit=20)
    return evaluate(load_model(net), data, tmp_path_factory.mktemp("run"), SETTINGS, command=["me"])


def test_every_sample_has_a_row_and_every_attack_and_certificate_has_its_columns(run: Run) -> None:
    samples, attacks, certificates = (run.folder.table(name) for name in ("samples", "attacks", "certificates"))
    assert {"index", "label", "prediction", "margin"} <= set(samples)
    assert {"index", "fooled", "distance", "steps", "loss", "verified"} <= set(attacks)
    assert {"index", "radius", "source", "guarantee"} <= set(certificates)
    assert len(samples) == 20
    assert attacks.groupby(["attack", "norm"])["index"].apply(list).map(len).tolist() == [20, 20]
    assert certificates.groupby("certificate")["index"].count().to_dict() == {
        "lipschitz": 40,
        SETTINGS.smoothing.name: 20,  # type: ignore[union-attr]
    }
    assert ((attacks["loss"] > 0) == attacks["fooled"])[attacks["verified"]].all()
    assert attacks["verified"].all()


def test_seconds_are_kept_for_every_part_attack_and_certificate(run: Run) -> None:
    timings = run.folder.timings()
    assert (timings["seconds"] > 0).all()
    assert timings.groupby(["side", "name"])["samples"].sum().to_dict() == {
        ("attack", "fgsm"): 20,
        ("attack", "fmn"): 20,
        ("certificate", "lipschitz"): 40,
        ("certificate", SETTINGS.smoothing.name): 20,  # type: ignore[union-attr]
    }
    assert timings["eps"].isna().sum() == len(timings) - 3


def test_the_manifest_says_what_was_run_on_what_and_where(run: Run) -> None:
    manifest = run.folder.manifest()
    assert manifest["command"] == ["me"]
    assert set(manifest["settings"]) == {field.name for field in fields(Settings)}
    assert {"torch", "numpy", "robustres", "python"} <= set(manifest["versions"])
    assert {"cpu", "cores", "threads", "processes", "gpu", "device", "system"} == set(manifest["hardware"])
    assert all(len(manifest[part]["sha256"]) == 64 for part in ("model", "data"))
    assert (manifest["seed"], manifest["data"]["split"], manifest["data"]["split_seed"]) == (0, "test", 20_240_501)
    assert manifest["dtype"] == {"weights": "float32", "images": "float32", "certify": "float64"}
    assert set(manifest["tf32"]) == {"matmul", "convolution"}
    assert manifest["created"].endswith("+00:00")
