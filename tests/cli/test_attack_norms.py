"""`robustres attack` in norms that only attacks support, and the list of attacks in its help."""

import json
import sys
from pathlib import Path

import pytest

from robustres.attacks import attack_names
from robustres.results import AVERAGE_CASE

from .conftest import run

MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
BASE = ["digits_net:net", "--data", "digits", "--limit", "12"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "digits_net.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("digits_net", None)
    return tmp_path


def test_changed_values_are_counted_in_l0(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["attack", *BASE, "--norm", "l0", "--eps", "2,6", "--attacks", "sigma-zero", "--out", "run"]
    assert run(words, monkeypatch) == 0
    rows = json.loads((folder / "run" / "summary.json").read_text())["attacks"]
    assert [(row["attack"], row["norm"], row["eps"]) for row in rows] == [
        ("sigma-zero", "l0", 2),
        ("sigma-zero", "l0", 6),
    ]
    assert rows[0]["robust"] >= rows[1]["robust"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["certify", *BASE, "--norm", "l0", "--eps", "5"], "must be one of l2, linf, for which there are certificates"),
        (["attack", *BASE, "--norm", "l0"], "there is no conventional eps in l0; give one or several by --eps"),
        (["attack", *BASE, "--norm", "l0", "--eps", "0.5"], "number of channel values that may change, at least 1"),
        (["attack", *BASE, "--norm", "l0", "--eps", "5"], "strong is defined for l2, linf, l1, not for l0"),
    ],
)
def test_attacks_and_certificates_without_l0_refuse_it_in_one_sentence(
    words: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--out", "run"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "run").exists()


def test_the_help_names_every_attack(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert run(["attack", "--help"], monkeypatch) == 0
    text = "".join(capsys.readouterr().out.replace("│", " ").split())  # names are broken at their hyphens
    assert [name for name in attack_names() if name not in text] == []


def test_the_average_case_is_shown_beside_the_worst_case(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["attack", *BASE, "--norm", "l2", "--eps", "1", "--attacks", "pgd", "--corruptions", "--out", "run"]
    assert run(words, monkeypatch) == 0
    rows = {row["attack"]: row for row in json.loads((folder / "run" / "summary.json").read_text())["attacks"]}
    assert set(rows) == {"pgd", *AVERAGE_CASE}
    assert {name: row.get("case") for name, row in rows.items()} == {"pgd": None} | dict.fromkeys(
        AVERAGE_CASE, "average"
    )
    assert all(rows[name]["robust"] >= rows["pgd"]["robust"] for name in AVERAGE_CASE)
    page = (folder / "run" / "report.md").read_text()
    assert page.count("average case (one random corruption of this size, no attack)") == 3
