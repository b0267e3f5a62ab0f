"""Properties of all commands: help with an example, --json as one document, exit codes, Ctrl-C, completion."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from robustres.cli.main import commands
from robustres.data import load_data
from robustres.errors import DataError
from robustres.evaluation import Settings, evaluate
from robustres.models import load_model, residual_net, save_checkpoint

from .conftest import run

NAMES = sorted(command.callback.__name__ for command in commands.registered_commands if command.callback)
ALL = "attack audit certify compare data demo enforce evaluate inspect lipschitz recheck replay report train verify"
NO_DATA = {"demo", "report", "compare", "recheck", "replay", "verify"}
# Options that differ between commands: --out has other defaults, --data may be optional, training sets its own scale.
# Their --json is also read in the tests of the commands.
COSTLY = {"demo", "enforce", "inspect"}
TRAINED = "textbook-tiny"
OWN_MEANING = {"out", "data", "batch_size", "seed", "eps", "norm", "limit", "help"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and two runs of it."""
    folder = tmp_path_factory.mktemp("commands")
    network = residual_net(block="residual", depth=1, width=4, image_shape=(1, 8, 8), classes=10, pool=2)
    save_checkpoint(network, folder / "model.safetensors")
    shutil.copy(Path(__file__).parents[2] / "examples" / "digits.onnx", folder / "verify.onnx")
    names = [f"(declare-const X_{i} Real)" for i in range(64)] + [f"(declare-const Y_{i} Real)" for i in range(10)]
    box = [f"(assert (<= X_{i} 0.5))(assert (>= X_{i} 0.5))" for i in range(64)]
    (folder / "verify.vnnlib").write_text("\n".join([*names, *box, "(assert (<= Y_0 -1000000.0))"]))
    for name in ("one", "two"):
        settings = Settings(eps={"l2": (8.0,)}, attacks=("fgsm",), joint=False, save_examples=True)
        evaluate(load_model(str(folder / "model.safetensors")), load_data("digits", limit=8), folder / name, settings)
    kept = Settings(eps={"l2": (0.1,)}, attacks=(), certificate="local", seconds_per_image=0.1, keep_certificates=True)
    evaluate(load_model(str(folder / "model.safetensors")), load_data("digits", limit=1), folder / "kept", kept)
    return folder


def arguments(command: str, folder: Path) -> list[str]:
    """A small invocation of each command."""
    model, out = str(folder / "model.safetensors"), ["--out", str(folder / f"out-{command}")]
    few = ["--data", "digits", "--limit", "4", *out]
    return {
        "attack": [model, *few, "--fast"],
        "audit": [
            model,
            "--input-shape",
            "1,8,8",
            "--claimed-lipschitz",
            "1e9",
            "--restarts",
            "1",
            "--seconds",
            "0.1",
            *out,
        ],
        "certify": [model, *few, "--textbook"],
        "compare": [str(folder / "one"), str(folder / "two"), *out],
        "data": ["digits", "--limit", "4"],
        "demo": out,
        "enforce": [model, "--lipschitz", "1", *few],
        "evaluate": [model, *few, "--textbook"],
        "inspect": [model, *few, "--textbook"],
        "lipschitz": [model, "--input-shape", "1,8,8", "--textbook"],
        "report": [str(folder / "one")],
        "recheck": [str(folder / "kept")],
        "replay": [str(folder / "one")],
        "verify": ["--onnx", str(folder / "verify.onnx"), "--vnnlib", str(folder / "verify.vnnlib"), "--timeout", "20"],
        "train": [TRAINED, "--data", "digits", "--loss", "clean", "--epochs", "1", "--limit", "100", *out],
    }[command]


def test_all_commands_are_covered() -> None:
    assert ALL.split() == NAMES


@pytest.mark.parametrize("command", [pytest.param(n, marks=pytest.mark.slow if n in COSTLY else ()) for n in NAMES])
def test_json_is_one_document_and_nothing_else(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    code = run([command, *arguments(command, folder), "--json"], monkeypatch)
    said = capfd.readouterr()
    assert code == 0, said.err
    assert isinstance(json.loads(said.out), dict)


@pytest.mark.parametrize("command", NAMES)
def test_help_shows_an_example_and_the_json_option(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([command, "--help"], monkeypatch) == 0
    said = capfd.readouterr().out
    assert f"Example: robustres {command}" in " ".join(said.split())
    names = [name for p in typer.main.get_command(commands).commands[command].params for name in p.opts if "--" in name]  # type: ignore[attr-defined]
    assert [name for name in names if name not in said] == []
    assert "--json" in names


def options(command: Any) -> Iterator[tuple[str, Any]]:
    for parameter in command.params:
        if parameter.name not in OWN_MEANING and parameter.param_type_name == "option":
            yield parameter.name, (parameter.opts, parameter.secondary_opts)


def test_an_option_has_the_same_name_in_every_command() -> None:
    known: dict[str, Any] = {}
    for command in typer.main.get_command(commands).commands.values():  # type: ignore[attr-defined]
        for name, declared in options(command):
            assert known.setdefault(name, declared) == declared, f"{command.name} --{name}"


@pytest.mark.parametrize("command", [name for name in NAMES if name not in NO_DATA])
def test_every_command_that_reads_data_takes_the_same_options_for_it(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each is given a data set that does not exist; nothing is downloaded without --download."""
    words = [word for word in arguments(command, folder) if word not in {"--input-shape", "1,8,8"}]
    words = ["mnist" if word == "digits" else word for word in words]
    words = [word.replace(str(folder / "out-"), str(tmp_path / "out-")) for word in words]  # a new folder
    words += [] if "mnist" in words else ["--data", "mnist"]
    asked: list[dict[str, Any]] = []

    def missing(spec: str, **options: Any) -> None:
        asked.append({"spec": spec, **options})
        raise DataError("not there")

    monkeypatch.setattr("robustres.data.load_data", missing)
    given = ["--split", "validation", "--limit", "7", "--data-root", "here", "--download"]
    assert run([command, *words, *given], monkeypatch) == 2, capfd.readouterr().err
    assert asked[0] == {"spec": "mnist", "root": Path("here"), "split": "validation", "limit": 7, "download": True} | (
        {"classes": None}
    )


@pytest.mark.parametrize("command", [name for name in NAMES if name not in NO_DATA | {"data"}])
def test_a_missing_model_is_bad_input(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = arguments(command, tmp_path)
    words = ["nowhere.onnx" if word in {str(tmp_path / "model.safetensors"), TRAINED} else word for word in words]
    assert run([command, *words], monkeypatch) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "nowhere.onnx" in said.err


@pytest.mark.parametrize(
    "words",
    [["data", "nowhere"], ["report", "nowhere"], ["compare", "nowhere"], ["demo", "--device", "tpu9"], ["nonsense"]],
)
def test_other_bad_input_exits_with_2(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(words, monkeypatch) == 2
    assert capfd.readouterr().out == ""


def test_ctrl_c_leaves_a_run_that_the_printed_command_finishes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["attack", str(folder / "model.safetensors"), "--data", "digits", "--limit", "8", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("robustres.evaluation.task.evaluated_part", interrupt)
        assert run([*words, "--overwrite"], monkeypatch) == 130
    said = capfd.readouterr().err
    assert f"continue with robustres {' '.join(words)}\n" in said
    assert not (tmp_path / "summary.json").exists()
    assert run(words, monkeypatch) == 0
    assert (tmp_path / "summary.json").exists()


def test_ctrl_c_elsewhere_is_not_reported_as_a_defect(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("robustres.models.load_model", interrupt)
    assert run(["lipschitz", str(folder / "model.safetensors"), "--input-shape", "1,8,8"], monkeypatch) == 130
    assert "interrupted" in capfd.readouterr().err


def test_the_shell_completes_commands_and_options(tmp_path: Path) -> None:
    def completed(words: str) -> list[str]:
        environment = {
            **os.environ,
            "_ROBUSTRES_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        code = "import sys; sys.argv[0] = 'robustres'; from robustres.cli.main import app; app()"
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        return done.stdout.split()

    assert completed("robustres ev") == ["evaluate"]
    assert "--keep-going" in completed("robustres evaluate --k")
