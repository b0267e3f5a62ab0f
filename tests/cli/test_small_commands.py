"""The commands around evaluate, on the embedded digits."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from robustres.models import preset, save_checkpoint

from .conftest import run


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return str(save_checkpoint(preset("residual-tiny", seed=0), tmp_path / "model.safetensors"))


def test_data_describes_a_data_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "digits", "--json"], monkeypatch) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["samples"] == 360
    assert facts["image_shape"] == [1, 8, 8]
    assert sum(facts["classes"].values()) == 360


def test_lipschitz_prints_the_ledger_without_data(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lipschitz", checkpoint, "--input-shape", "1,8,8", "--textbook", "--json"], monkeypatch) == 0
    report = json.loads(capsys.readouterr().out)
    residual = [row for row in report["blocks"] if row["shortcut"] is not None]
    assert residual
    assert all(row["upper"] <= row["textbook"] for row in residual)
    assert report["lower"] <= report["upper"]


@pytest.mark.slow
def test_lipschitz_searches_from_images_and_shows_the_gain_of_a_smaller_branch(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lipschitz", checkpoint, "--data", "digits", "--effort", "0.1", "--json"], monkeypatch) == 0
    plain = json.loads(capsys.readouterr().out)
    name = next(row["name"] for row in plain["blocks"] if row["shortcut"] is not None)
    command = ["lipschitz", checkpoint, "--data", "digits", "--effort", "0.1", "--what-if", f"{name}=1/2", "--json"]
    assert run(command, monkeypatch) == 0
    (supposed,) = json.loads(capsys.readouterr().out)["what_if"]
    product = math.prod(row["upper"] for row in plain["blocks"])
    assert plain["upper"] <= product * (1 + 1e-12)
    assert supposed["network_upper"] < product
    assert supposed["radius_gain"] == pytest.approx(product / supposed["network_upper"])
    assert run([*command[:-3], "--what-if", name], monkeypatch) == 2
    assert "BLOCK=FACTOR" in capsys.readouterr().err


def test_a_wrong_shape_is_refused_with_an_example(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["lipschitz", checkpoint, "--input-shape", "8x8"], monkeypatch) == 2
    assert "3,32,32" in capsys.readouterr().err


def test_enforce_writes_a_network_within_its_budget(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["enforce", checkpoint, "--lipschitz", "0.9", "--data", "digits", "--out", str(tmp_path / "new")]
    assert run([*arguments, "--textbook", "--json"], monkeypatch) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["after"]["lipschitz"] < facts["before"]["lipschitz"]
    assert run(["lipschitz", facts["model"], "--input-shape", "1,8,8", "--textbook", "--json"], monkeypatch) == 0
    for row in json.loads(capsys.readouterr().out)["blocks"]:
        assert row["upper"] <= (0.9 if row["shortcut"] is None else 1 + 0.9**2) * (1 + 1e-6)


def test_foreign_files_in_out_are_not_overwritten(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own" / "model.safetensors"
    own.parent.mkdir()
    own.write_text("mine")
    enforced = ["enforce", checkpoint, "--lipschitz", "0.9", "--data", "digits", "--out"]
    trained = ["train", "constrained-tiny", "--data", "digits", "--epochs", "1", "--limit", "50", "--out"]
    for command in (enforced, trained):
        assert run([*command, str(own.parent)], monkeypatch) == 2
        assert "would be overwritten; choose another --out" in capsys.readouterr().err
        assert [file.name for file in own.parent.iterdir()] == ["model.safetensors"]
        assert own.read_text() == "mine"


def test_certify_and_attack_fill_one_side_each(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, filled, empty in (("certify", "certificates", "attacks"), ("attack", "attacks", "certificates")):
        arguments = [command, checkpoint, "--data", "digits", "--limit", "8", "--norm", "l2", "--eps", "0.5", "--json"]
        textbook = ["--textbook"] if command == "certify" else []
        assert run([*arguments, *textbook, "--out", str(tmp_path / command)], monkeypatch) == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary[filled]
        assert summary[empty] == []


def test_training_twice_with_one_seed_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in ("one", "two"):
        arguments = ["train", "constrained-tiny", "--data", "digits", "--loss", "emma", "--epochs", "1", "--json"]
        assert run([*arguments, "--out", str(tmp_path / out)], monkeypatch) == 0
        json.loads(capsys.readouterr().out)
    one, two = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("one", "two"))
    assert one == two


@pytest.mark.slow
def test_the_demo_certifies_a_substantial_share_and_shows_the_effect_of_constraints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", "--out", str(tmp_path), "--json"], monkeypatch) == 0
    summary = json.loads(capsys.readouterr().out)
    certified = {
        run["name"]: next(row["accuracy"] for row in run["certificates"] if (row["norm"], row["eps"]) == ("l2", 0.5))
        for run in summary["runs"]
    }
    assert certified["constrained"] > 0.6
    assert certified["plain"] == certified["residual"] == 0
    for name in ("report.html", "report.md", "samples.csv", "blocks.csv"):
        assert (tmp_path / name).stat().st_size > 0
    assert list((tmp_path / "figures").glob("*.svg"))


def test_an_unexpected_error_is_reported_as_a_defect_and_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("forgotten")

    monkeypatch.setattr("robustres.data.load_data", broken)
    assert run(["data", "digits"], monkeypatch) == 3
    said = capsys.readouterr().err
    assert "KeyError" in said
    assert "this is a bug in robustres, please report it" in said
    assert "Traceback" not in said
    monkeypatch.setenv("ROBUSTRES_TRACEBACK", "1")
    assert run(["data", "digits"], monkeypatch) == 3
    assert "Traceback" in capsys.readouterr().err


def test_running_out_of_memory_is_not_reported_as_a_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise MemoryError("cannot allocate")

    monkeypatch.setattr("robustres.data.load_data", greedy)
    assert run(["data", "digits"], monkeypatch) == 2
    assert "--batch-size" in capsys.readouterr().err


def test_the_labels_of_folders_are_printed_and_can_be_ordered_by_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "images" / name / "0.png")
    assert run(["data", f"folder:{tmp_path / 'images'}"], monkeypatch) == 0
    assert "labels of the folders: 0 = cat, 1 = dog" in capsys.readouterr().err
    (tmp_path / "order.txt").write_text("dog\ncat\n")
    assert run(["data", f"folder:{tmp_path / 'images'}", "--classes", str(tmp_path / "order.txt")], monkeypatch) == 0
    assert "0 = dog, 1 = cat" in capsys.readouterr().err
