"""Comparisons of several runs."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest

from robustres.errors import InputError
from robustres.reports import write_comparison, write_report
from robustres.reports.mcnemar import holm, mcnemar_p
from robustres.reports.measures import Measure, compare_measures, same_samples
from robustres.reports.run import load_run
from robustres.reports.sandwich import per_sample


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, write_run: Any) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("compared")
    return {
        "plain": write_run(base / "plain", looseness=3.0, skill=0.97),
        "constrained": write_run(base / "constrained"),
        "third": write_run(base / "third", skill=0.5, looseness=2.0),
    }


@pytest.fixture(scope="module")
def out(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert write_comparison(folders, out) == out / "report.html"
    return out


def measures_of(folders: dict[str, Path]) -> list[Measure]:
    runs = [load_run(folder) for folder in folders.values()]
    return compare_measures(runs, [per_sample(run) for run in runs])


def test_the_files_of_a_single_report_exist_with_a_leading_model_column(out: Path) -> None:
    for name, rows in (("samples", 600), ("blocks", 12)):
        frame = pd.read_csv(out / f"{name}.csv")
        assert frame.columns[0] == "model"
        assert len(frame) == rows
        assert frame["model"].unique().tolist() == ["plain", "constrained", "third"]
    for name in ("report.html", "report.md", "tables.tex", "figures/sandwich-l2.svg", "figures/blocks-3.pdf"):
        assert (out / name).stat().st_size > 0


def test_the_summary_of_a_comparison_fits_the_schema_and_contains_each_run(out: Path, folders: dict[str, Path]) -> None:
    summary = json.loads((out / "summary.json").read_text())
    schema = json.loads((files("robustres.reports") / "schema" / "summary.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(summary)
    assert [run["name"] for run in summary["runs"]] == list(folders)
    assert summary["schema_version"] == 2


def test_the_best_of_each_row_is_the_largest_share(folders: dict[str, Path]) -> None:
    measures = measures_of(folders)
    assert len(measures) > 10
    for measure in measures:
        shares = [cell.accuracy for cell in measure.cells if cell is not None]
        best = [cell.best for cell in measure.cells if cell is not None]
        if len(set(shares)) == 1:
            assert not any(best)
        else:
            assert best == [share == max(shares) for share in shares]


def test_p_values_are_mcnemar_against_the_best_and_at_least_the_uncorrected_ones(folders: dict[str, Path]) -> None:
    correct = [load_run(folder).tables["samples"]["correct"].to_numpy() for folder in folders.values()]
    clean = measures_of(folders)[0]
    assert clean.kind == "clean"
    best = int(np.argmax([mask.mean() for mask in correct]))
    for mask, cell in zip(correct, clean.cells, strict=True):
        assert cell is not None
        if cell.best:
            assert cell.p is None
        else:
            assert cell.p is not None
            assert cell.p >= mcnemar_p(correct[best], mask)


def test_p_values_are_corrected_over_the_whole_table(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def p_values() -> list[float]:
        cells = [cell for measure in measures_of(folders) for cell in measure.cells if cell is not None]
        return [cell.p for cell in cells if cell.p is not None]

    corrected = p_values()
    monkeypatch.setattr("robustres.reports.measures.holm", list)
    raw = p_values()
    assert corrected == holm(raw)
    assert corrected != raw


def test_runs_on_other_images_are_compared_without_a_test(
    tmp_path: Path, folders: dict[str, Path], write_run: Any
) -> None:
    data = {"source": "others", "sha256": "ff" * 32, "classes": 10}
    other = write_run(tmp_path / "other", data=data)
    runs = [load_run(folders["plain"]), load_run(other)]
    assert not same_samples(runs)
    cells = [cell for m in compare_measures(runs, list(map(per_sample, runs))) for cell in m.cells if cell]
    assert all(cell.p is None for cell in cells)
    html = write_comparison({"a": folders["plain"], "b": other}, tmp_path / "out").read_text()
    assert "did not use the same images" in html


def test_the_best_is_bold_in_every_format(out: Path) -> None:
    assert "**" in (out / "report.md").read_text()
    assert r"\textbf{" in (out / "tables.tex").read_text()
    assert "<strong>" in (out / "report.html").read_text()


def test_one_run_is_no_comparison(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="at least 2 runs"):
        write_comparison({"plain": folders["plain"]}, tmp_path)


def test_a_comparison_links_to_the_reports_below_it(tmp_path: Path, write_run: Any) -> None:
    inside, outside = write_run(tmp_path / "out" / "my run", count=20), write_run(tmp_path / "elsewhere", count=20)
    write_report(inside)
    write_report(outside)
    html = write_comparison({"inside": inside, "outside": outside}, tmp_path / "out").read_text()
    assert '<a href="my%20run/report.html">inside</a>' in html
    assert ">outside</a>" not in html
