"""`robustres evaluate` from the user's view: known results of a real network, and one clear line for bad input."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustres.cli.main import app
from robustres.cli.run import print_diagnosis
from robustres.results import typed_table

Outcome = tuple[int, str, str]
Run = Callable[..., Outcome]
NORMALISATION = ("--mean", "0.4914,0.4822,0.4465", "--std", "0.2471,0.2435,0.2616")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `robustres ARGUMENTS` in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["robustres", *arguments])
        with pytest.raises(SystemExit) as stop:
            app()
        captured = capsys.readouterr()
        code = stop.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return call


class Small(nn.Module):
    """A residual network for 8 x 8 images with one option for each fault."""

    def __init__(self, *, classes: int = 10, fault: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, classes)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + torch.relu(self.branch(h))
        if self.fault == "unknown":
            h = torch.erfinv(torch.tanh(h) * 0.5)
        z: Tensor = self.head(h.flatten(1))
        if self.fault == "nan":
            z = z / 0.0 - z / 0.0
        return h if self.fault == "shape" else z


@pytest.fixture
def factories(tmp_path: Path) -> str:
    """The name of an importable module with one factory per fault."""
    here = Path(__file__).stem
    lines = [
        f"import importlib.util, pathlib\nspec = importlib.util.spec_from_file_location({here!r}, {__file__!r})",
        "module = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(module)",
    ]
    for fault in ("", "nan", "shape", "unknown"):
        lines.append(f"def {fault or 'sound'}():\n    return module.Small(fault={fault!r})")
    lines.append("def three_classes():\n    return module.Small(classes=3)")
    (tmp_path / "user_models.py").write_text("\n".join(lines))
    sys.modules.pop("user_models", None)
    return "user_models"


@pytest.mark.slow
def test_resnet_2b_gives_its_known_results(shared: Path, run: Run) -> None:
    code, out, err = run(
        "evaluate",
        str(shared / "models" / "resnet_2b.onnx"),
        "--data",
        f"npy:{shared / 'data' / 'cifar10-100'}",
        *NORMALISATION,
        "--norm",
        "linf",
        "--eps",
        "2/255",
        "--fast",
        "--out",
        "run",
        "--json",
    )
    assert code == 0, err
    summary = json.loads(out)
    assert summary == json.loads(Path("run/summary.json").read_text())
    assert summary["clean"] == {"correct": 86, "accuracy": 0.86}
    robust = {row["attack"]: row["robust"] for row in summary["attacks"]}
    assert robust["pgd"] == 76  # as many as the standard ensemble leaves; 78 with the published steps
    assert robust["fgsm"] >= robust["pgd"]
    blocks = [row for row in summary["lipschitz"]["blocks"] if row["shortcut"] is not None]
    assert len(blocks) == 2
    # Published for this network: the textbook bounds, and values below which no bound of a block can lie.
    for row, textbook, attained in zip(blocks, (9.12, 10.26), (3.755, 5.542), strict=True):
        assert row["lower"] <= attained <= row["upper"] <= row["textbook"] <= textbook
    assert summary["sandwich"] == {"violations": 0}
    for name in ("report.html", "report.md", "samples.csv", "blocks.csv", "run.json"):
        assert (Path("run") / name).stat().st_size > 0


def test_a_users_own_factory_is_evaluated(run: Run, factories: str) -> None:
    code, out, err = run(
        "evaluate",
        f"{factories}:sound",
        "--data",
        "digits",
        "--limit",
        "40",
        "--norm",
        "l2",
        "--eps",
        "36/255,0.5",
        "--out",
        "run",
    )
    assert code == 0, err
    assert "certified" in out
    summary = json.loads(Path("run/summary.json").read_text())
    assert [row["eps"] for row in summary["certificates"]] == [36 / 255, 0.5]
    assert {row["attack"] for row in summary["attacks"]} == {"strong"}


def test_the_findings_about_masked_gradients_are_printed(run: Run, factories: str) -> None:
    options = [
        "--data",
        "digits",
        "--limit",
        "12",
        "--eps",
        "0.3",
        "--attacks",
        "pgd",
        "--diagnose",
        "4",
        "--out",
        "run",
    ]
    code, out, err = run("attack", f"{factories}:sound", *options)
    assert code == 0, err
    assert "pgd at linf 0.3: no sign of masked gradients" in out


def test_signs_of_masked_gradients_are_printed_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    signs = [
        ("pgd", 0.3, True, "Random search does better."),
        ("pgd", 0.3, False, "Fine."),
        ("apgd", 0.1, False, "Fine."),
    ]
    rows = [
        {"attack": attack, "norm": "linf", "eps": eps, "check": "c", "value": 0.5, "suspicious": bad, "verdict": said}
        for attack, eps, bad, said in signs
    ]
    print_diagnosis(typed_table("diagnosis", rows))
    assert capsys.readouterr().out.splitlines() == [
        "pgd at linf 0.3: signs of masked gradients, its robust accuracy is too high",
        "  Random search does better.",
        "apgd at linf 0.1: no sign of masked gradients",
    ]


def test_an_unknown_operation_is_named_and_attacks_still_run(run: Run, factories: str) -> None:
    code, out, err = run(
        "evaluate", f"{factories}:unknown", "--data", "digits", "--limit", "20", "--fast", "--out", "run"
    )
    assert code == 0, err
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["lipschitz"] is None
    assert [row for row in summary["refused"] if "erfinv" in row["operation"]]
    assert summary["attacks"]
    assert summary["certificates"] == []
    for shown in (out, Path("run/report.md").read_text()):
        assert "erfinv" in shown
        assert "--certificate best --seconds-per-image" in shown


@pytest.mark.parametrize(
    ("more", "advised"), [((), True), (("--certificate", "local", "--seconds-per-image", "0.1"), False)]
)
def test_where_nothing_is_certified_the_option_that_may_certify_more_is_named(
    run: Run, factories: str, more: tuple[str, ...], *, advised: bool
) -> None:
    code, out, err = run(
        "certify", f"{factories}:sound", "--data", "digits", "--limit", "3", "--eps", "7", "--out", "run", *more
    )
    assert code == 0, err
    assert ("--seconds-per-image 15" in out) == advised
    assert ("--seconds-per-image 15" in Path("run/report.md").read_text()) == advised


def write_images(folder: Path, images: np.ndarray, labels: np.ndarray) -> str:
    folder.mkdir()
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    return f"npy:{folder}"


GREY = np.full((4, 8, 8, 1), 128, dtype=np.uint8)
ZEROS = np.zeros(4, dtype=np.int64)
BAD_DATA = {
    "normalised": (GREY.astype(np.float32) / 64 - 3, ZEROS, "[0, 1]"),
    "bytes as floats": (GREY.astype(np.float32), ZEROS, "[0, 1]"),
    "not finite": (np.full((4, 8, 8, 1), np.nan, dtype=np.float32), ZEROS, "NaN"),
    "negative label": (GREY, ZEROS - 1, "label"),
    "labels missing": (GREY, ZEROS[:3], "3"),
    "empty": (GREY[:0], ZEROS[:0], "no "),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_gets_one_line_and_writes_nothing(case: str, run: Run, factories: str, tmp_path: Path) -> None:
    images, labels, word = BAD_DATA[case]
    data = write_images(tmp_path / "data", images, labels)
    assert_refused(run("evaluate", f"{factories}:sound", "--data", data, "--out", "run"), word)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("missing.onnx", "--data", "digits"), "missing.onnx"),
        (("missing.safetensors", "--data", "digits"), "missing.safetensors"),
        (("no_such_module:net", "--data", "digits"), "no_such_module"),
        (("user_models:absent", "--data", "digits"), "absent"),
        (("user_models:sound", "--data", "npy:nowhere"), "nowhere"),
        (("user_models:sound", "--data", "something"), "something"),
        (("user_models:sound", "--data", "digits", "--eps", "0"), "eps must be positive"),
        (("user_models:sound", "--data", "digits", "--eps=-1/255"), "eps must be positive"),
        (("user_models:sound", "--data", "digits", "--eps", "eight"), "eight"),
        (("user_models:sound", "--data", "digits", "--norm", "l7"), "l7"),
        (("user_models:sound", "--data", "digits", "--attacks", "pdg"), "pdg"),
        (("user_models:sound", "--data", "digits", "--mean", "0.5,0.5"), "mean"),
        (("user_models:sound", "--data", "digits", "--device", "tpu9"), "tpu9"),
        (("user_models:nan", "--data", "digits", "--limit", "4"), "not finite"),
        (("user_models:shape", "--data", "digits", "--limit", "4"), "(N, classes)"),
        (("user_models:three_classes", "--data", "digits"), "outside the model's 3 classes"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(
    arguments: tuple[str, ...], word: str, run: Run, factories: str
) -> None:
    assert factories == "user_models"
    assert_refused(run("evaluate", *arguments, "--out", "run"), word)


def assert_refused(outcome: Outcome, word: str) -> None:
    code, out, err = outcome
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err
    assert not Path("run").exists()


def test_samples_with_non_finite_logits_can_be_reported_and_skipped(run: Run, factories: str) -> None:
    code, _, err = run(
        "evaluate", f"{factories}:nan", "--data", "digits", "--limit", "4", "--out", "run", "--keep-going"
    )
    assert code == 0, err
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["clean"]["correct"] == 0
    assert all(row["robust"] == 0 for row in summary["attacks"])


def test_a_folder_with_another_run_is_refused_and_left_unchanged(run: Run, factories: str) -> None:
    arguments = ("evaluate", f"{factories}:sound", "--data", "digits", "--limit", "8", "--out", "run")
    assert run(*arguments, "--eps", "1/255")[0] == 0
    before = Path("run/summary.json").read_bytes()
    code, _, err = run(*arguments, "--eps", "2/255")
    assert code == 2
    assert "eps" in err
    assert Path("run/summary.json").read_bytes() == before
    assert run(*arguments, "--eps", "1/255")[0] == 0
    assert Path("run/summary.json").read_bytes() == before
