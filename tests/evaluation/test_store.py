"""The contents of a run folder: every column and every fact that is needed to understand the run later."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn

from robustres.certify import RandomisedSmoothing
from robustres.data import load_data
from robustres.errors import InputError
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


def test_seconds_are_recorded_for_every_part_attack_and_certificate(run: Run) -> None:
    timings = run.folder.timings()
    assert (timings["seconds"] > 0).all()
    assert timings.groupby(["side", "name"])["samples"].sum().to_dict() == {
        ("attack", "fgsm"): 20,
        ("attack", "fmn"): 20,
        ("certificate", "lipschitz"): 40,
        ("certificate", SETTINGS.smoothing.name): 20,  # type: ignore[union-attr]
    }
    assert timings["eps"].isna().sum() == len(timings) - 3


def test_the_manifest_states_what_was_run_on_which_data_and_where(run: Run) -> None:
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


class Mixed(nn.Module):
    """A body in bfloat16 and a head in float32, as in quantised language models and in mixed-precision networks."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 16).to(torch.bfloat16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(x.flatten(1).to(torch.bfloat16)).relu().float())
        return logits


def test_a_network_of_several_types_is_left_unchanged() -> None:
    mixed, x = Mixed().eval(), torch.rand(4, 1, 8, 8)
    loaded = load_model(mixed, input_shape=(1, 8, 8)).module
    assert [p.dtype for p in loaded.parameters()] == [p.dtype for p in mixed.parameters()]
    assert torch.equal(loaded(x), mixed(x))


@pytest.mark.parametrize(
    ("model", "weights", "images"),
    [
        (Mixed(), "bfloat16, float32", "float32"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half(), "float16", "float16"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(), "float64", "float64"),
    ],
)
@pytest.mark.parametrize("statistics", [{}, {"mean": (0.5,), "std": (0.25,)}])
def test_every_type_is_evaluated_as_it_is_and_gets_radii_where_they_are_valid(
    model: nn.Module, weights: str, images: str, statistics: dict[str, tuple[float]], tmp_path: Path
) -> None:
    data, settings = load_data("digits", limit=4), Settings(eps={"linf": (0.1,)}, attacks=("pgd",))
    run = evaluate(load_model(model, input_shape=(1, 8, 8), **statistics), data, tmp_path / "run", settings)
    arithmetic = run.folder.manifest()["dtype"]
    assert arithmetic["weights"] == weights
    assert arithmetic["images"] == images or statistics
    covered = images == "float64"
    assert (len(run.certificates) > 0) == covered
    assert covered or "arithmetic in" in run.summary["refused"][0]["operation"]


def test_the_manifest_states_the_arithmetic_of_the_radii(tmp_path: Path) -> None:
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), load_data("digits", limit=4)
    single = Settings(eps={"l2": (0.1,)}, attacks=(), dtype="float32")
    manifest = evaluate(load_model(model), data, tmp_path / "run", single).folder.manifest()
    assert manifest["dtype"] == {"weights": "float32", "images": "float32", "certify": "float32"}
    with pytest.raises(InputError, match=r"weights are float64; leave dtype at float64, or .* model.float\(\)"):
        evaluate(load_model(model.double()), data, tmp_path / "other", single)
