"""All adversarial examples are kept on request and can be evaluated again later, also by onnxruntime."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robustres
from robustres.cli.main import app
from robustres.data import load_data
from robustres.errors import DataError, InputError, ModelError
from robustres.evaluation import Settings, evaluate, replay
from robustres.results import RunFolder, write_archive

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SETTINGS = Settings(
    eps={"linf": (16 / 255,), "l2": (0.5,)}, attacks=("fgsm",), save_examples=True, examples=3, part_size=30
)


def test_every_example_is_kept_and_evaluated_again_by_the_model_and_by_onnxruntime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_data(f"npz:{EXAMPLES / 'digits.npz'}", limit=50)
    run = evaluate(str(EXAMPLES / "digits.onnx"), data, tmp_path, SETTINGS)
    rows = replay(tmp_path)
    found = run.attacks[run.attacks["fooled"] & (run.attacks["distance"] > 0)]
    assert len(rows) == len(found) > len(run.folder.table("examples"))
    assert rows["fooled"].all()
    assert (rows["answer"] == rows["recorded"]).all()
    assert (rows["onnxruntime"] == rows["recorded"]).mean() > 0.95
    away = []
    for frame, images in run.folder.adversarial():
        moved = torch.from_numpy(images) - data.batch(torch.from_numpy(frame["index"].to_numpy(copy=True)))
        size = {"linf": moved.abs().flatten(1).amax(1), "l2": moved.flatten(1).norm(dim=1)}
        away += [float(size[norm][i]) for i, norm in enumerate(frame["norm"])]
    assert np.allclose(sorted(away), sorted(found["distance"]), atol=1e-6)
    monkeypatch.setattr(sys, "argv", ["robustres", "replay", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as stop:
        app()
    assert stop.value.code == 0
    said = json.loads(capsys.readouterr().out)["replay"]
    assert sum(row["examples"] for row in said) == len(rows)


def test_other_weights_and_a_run_without_kept_examples_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    data = load_data("digits", limit=10)
    evaluate(model, data, tmp_path / "none", Settings(eps={"l2": (0.5,)}, attacks=("fgsm",)))
    with pytest.raises(InputError, match="stored no examples"):
        replay(tmp_path / "none", model)
    with pytest.raises(InputError, match="other weights"):
        replay(tmp_path / "none", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


def test_eight_bit_images_are_kept_as_such(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    rows = [
        {"index": 0, "attack": "a", "norm": "l2", "eps": 0.1, "channels": 1, "height": 1, "width": 2}
        | {"pixels": kind, "image": image.tobytes()}
        for kind, image in (("uint8", np.array([0, 255], np.uint8)),)
    ]
    folder.write_part("adversarial", "all", rows)
    ((_, images),) = folder.adversarial()
    assert images.tolist() == [[[[0.0, 1.0]]]]


def test_all_examples_of_a_run_can_be_exported_as_one_numpy_archive(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    data = load_data("digits", limit=20)
    settings = Settings(eps={"l2": (0.5, 1.0)}, attacks=("fgsm", "ddn"), save_examples=True, part_size=8)
    run = evaluate(model, (data.images, model(data.images).argmax(1)), tmp_path, settings)
    with np.load(write_archive(run.folder)) as archive:
        kept = {name: archive[name] for name in archive.files}
    expected = run.attacks[run.attacks["fooled"]]
    assert len(kept["images"]) == len(expected) > 20
    assert kept["images"].shape[1:] == (1, 8, 8)
    assert set(kept["attack"]) == {"fgsm", "ddn"}
    assert np.isnan(kept["eps"]).tolist() == (kept["attack"] == "ddn").tolist()
    answers = model(torch.from_numpy(kept["images"])).argmax(1)
    clean = model(data.images[torch.from_numpy(kept["index"])]).argmax(1)
    assert bool((answers != clean).all())
    with pytest.raises(InputError, match="stored no examples"):
        write_archive(RunFolder(tmp_path / "none"))


@pytest.mark.slow
def test_calls_accept_specifications_modules_and_loaded_models(tmp_path: Path) -> None:
    words = str(EXAMPLES / "digits.onnx")
    loaded = robustres.load_model(words)
    bounds = [
        robustres.lipschitz(model, [1, 8, 8], joint=False, lower_steps=0).upper
        for model in (words, loaded, loaded.module)
    ]
    assert len(set(bounds)) == 1
    assert robustres.audit(loaded, (1, 8, 8), claimed={"": 1e9}).verdict == "proven"
    with pytest.raises(ModelError, match="a model must be"):
        robustres.lipschitz(3, (1, 8, 8))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="input_shape must be"):
        robustres.lipschitz(loaded, 3)
    with pytest.raises(InputError, match=r"recipe must be"):
        robustres.train(loaded, "digits", "digits", {"epochs": 1})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="data must be one of"):
        robustres.train(loaded, "digitz", "digits", robustres.Recipe())
    with pytest.raises(InputError, match="settings must be"):
        robustres.evaluate(loaded, "digits", tmp_path, {"eps": 3})  # type: ignore[arg-type]


def test_the_representation_of_results_is_short_and_informative(tmp_path: Path) -> None:
    assert set(robustres.__all__) == set(dir(robustres))
    loaded = robustres.load_model(str(EXAMPLES / "digits.onnx"))
    data = load_data("digits", limit=5)
    run = robustres.attack(loaded, data, tmp_path, Settings(eps={"l2": (0.5,)}, attacks=("fgsm",)))
    for thing, word in ((loaded, "digits.onnx"), (data, "5 images of 1 x 8 x 8"), (run, "of 5 correct")):
        assert word in repr(thing)
        assert len(repr(thing)) < 300


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": 0.1},
        {"eps": {"l2": ("much",)}},
        {"eps": {"l3": (0.1,)}},
        {"attacks": 3},
        {"seed": 1.5},
        {"batch_size": "8"},
        {"effort": "much"},
        {"part_size": 0},
    ],
)
def test_a_wrong_setting_is_refused_at_construction_in_one_sentence(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Settings(**{"eps": {"l2": (0.1,)}, **wrong})  # type: ignore[arg-type]
