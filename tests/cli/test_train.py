"""`robustres train`: recipes from a file, interrupted and resumed, and what it refuses."""

import inspect
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from robustres.cli import train as command
from robustres.cli.options import spread
from robustres.data import load_data
from robustres.errors import DataError
from robustres.training import Recipe

from .conftest import run

RECIPE = """
[architecture]
block = "linear"
depth = 1
width = 4
activation = "maxmin"
[recipe]
loss = "emma"
eps = 0.5
epochs = 3
batch_size = 50
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    return file


def arguments(recipe: Path, out: Path) -> list[str]:
    return ["train", "--recipe", str(recipe), "--data", "digits", "--limit", "200", "--out", str(out)]


def test_an_interrupted_run_says_how_to_go_on_and_ends_as_an_unbroken_one(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(recipe, tmp_path / "whole"), monkeypatch) == 0

    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "_line", interrupt)
        assert run(arguments(recipe, tmp_path / "cut"), monkeypatch) == 130
    assert "--resume" in capsys.readouterr().err
    assert run(arguments(recipe, tmp_path / "cut"), monkeypatch) == 2
    assert "add --resume" in capsys.readouterr().err
    assert run([*arguments(recipe, tmp_path / "cut"), "--resume"], monkeypatch) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_an_option_has_the_last_word_and_the_recipe_that_was_used_is_kept(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = [*arguments(recipe, tmp_path / "a"), "--loss", "clean", "--epochs", "1", "--json"]
    assert run(changed, monkeypatch) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [facts["data"][part]["split"] for part in ("train", "validation")] == ["train", "validation"]
    assert (facts["recipe"]["loss"], facts["recipe"]["epochs"], facts["recipe"]["clip_norm"]) == ("clean", 1, None)
    assert run(arguments(tmp_path / "a" / "recipe.toml", tmp_path / "b"), monkeypatch) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("loss = 'nonsense'", "loss"), ("colour = 1", "colour"), ("[recipe", "cannot read"), ("epochs = 1", "name one")],
)
def test_a_wrong_recipe_is_one_sentence(
    text: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    network = [] if complaint == "name one" else ["constrained-tiny"]
    assert run(["train", *network, *arguments(file, tmp_path / "out")[1:]], monkeypatch) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert "Traceback" not in said


def test_without_a_validation_split_its_images_are_trained_on_and_the_last_epoch_is_kept(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--recipe", str(recipe), "--data", "digits", "--epochs", "1", "--validation-split", "none"]
    assert run([*words, "--out", str(tmp_path / "refused")], monkeypatch) == 2
    assert "keep = last" in capsys.readouterr().err
    assert run([*words, "--keep", "last", "--out", str(tmp_path / "out")], monkeypatch) == 0
    facts = json.loads((tmp_path / "out" / "training.json").read_text())
    parts = [load_data("digits", split=split) for split in ("train", "validation")]
    together = parts[0].and_also(parts[1])
    assert facts["data"] == {"train": together.facts()}
    assert facts["clean"] is None
    assert len(together) == sum(map(len, parts))
    with pytest.raises(DataError, match="differ in their classes"):
        parts[0].and_also(load_data((np.zeros((2, 1, 8, 8), dtype=np.float32), [0, 1])))


def test_every_setting_of_a_recipe_is_an_option() -> None:
    options = set(inspect.signature(spread(command.train)).parameters)
    assert {field.name for field in fields(Recipe)} <= options


def test_the_parts_of_the_data_can_be_named_and_are_kept_with_the_training(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is one test split, for instance, can be learnt from when that is said."""
    generator = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", generator.random((40, 8, 8, 1), dtype=np.float32))
    np.save(tmp_path / "labels.npy", np.arange(40) % 2)
    words = ["train", "--recipe", str(recipe), "--data", f"npy:{tmp_path}", "--out", str(tmp_path / "out")]
    assert run(words, monkeypatch) == 2
    assert "has no train split" in capsys.readouterr().err
    assert run([*words, "--split", "test", "--validation-split", "test"], monkeypatch) == 0
    kept = json.loads((tmp_path / "out" / "training.json").read_text())["data"]
    assert [kept[part]["split"] for part in ("train", "validation")] == ["test", "test"]
    assert len(kept["train"]["sha256"]) == 64
