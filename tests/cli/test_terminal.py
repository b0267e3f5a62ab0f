"""Tables on a narrow terminal, and progress in meaningful units with the remaining time."""

import io
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from robustres.cli import console
from robustres.cli.main import app
from robustres.data import load_data
from robustres.evaluation import Settings, evaluate
from robustres.models import load_model

HEADER = ("block", "|S|", "|F|", "|S| + |F|", "joint", "bound", "estimate", "floor", "ratio", "s")
ROW = ("layer1.0.downsample", "1.234", "12.35", "13.59", "12.01", "12.01", "11.98", "12.00", "1.00", "10.2")


def test_the_widest_table_stays_readable_on_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "output", Console(file=shown, width=80))
    console.print_table("l2 Lipschitz constant", HEADER, [ROW, ROW], caption="whole network")
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for word in (*HEADER[1:], *ROW[1:]):
        assert any(word in line for line in lines), word
    assert "layer1.0" in shown.getvalue()


def test_an_evaluation_counts_samples_and_blocks(tmp_path: Path) -> None:
    model = load_model(str(Path(__file__).resolve().parents[2] / "examples" / "digits.onnx"))
    told: dict[str, list[tuple[int, int]]] = {}
    settings = Settings(eps={"l2": (0.1,)}, attacks=("fgsm",), part_size=8, joint=False)
    evaluate(
        model, load_data("digits", limit=20), tmp_path, settings, cache=False,
        progress=lambda stage, done, total: told.setdefault(stage, []).append((done, total)),
    )  # fmt: skip
    assert [done for done, _ in told["samples"]] == [4, 8, 12, 16, 18, 20]
    assert {total for _, total in told["samples"]} == {20}
    assert told["blocks"][-1][0] == told["blocks"][-1][1] > 3


def test_a_search_with_a_time_limit_counts_seconds() -> None:
    told: list[tuple[str, int, int]] = []
    with console.clock("search", 60.0, lambda *what: told.append(what)):
        time.sleep(1.2)
    assert told
    assert told[-1][2] == 60


def test_a_nonexistent_block_is_reported_before_the_expensive_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = str(Path(__file__).resolve().parents[2] / "examples" / "digits.onnx")

    def never(*arguments: object, **settings: object) -> None:
        raise AssertionError("the thorough bound began")

    monkeypatch.setattr("robustres.certify.bounds.pieces.branch_bound", never)
    monkeypatch.setattr(
        sys, "argv", ["robustres", "lipschitz", digits, "--input-shape", "1,8,8", "--what-if", "layer9=0.5"]
    )
    with pytest.raises(SystemExit) as stop:
        app()
    assert stop.value.code == 2
    assert "no block is called 'layer9'" in capsys.readouterr().err
