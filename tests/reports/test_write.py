"""The files written by write_report, compared with the tables that they were made from."""

import json
import math
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest

from robustres.errors import InputError
from robustres.reports import write_report
from robustres.results import RunFolder

WRITTEN = (
    "report.html",
    "report.md",
    "tables.tex",
    "model_card.md",
    "samples.csv",
    "blocks.csv",
    "summary.json",
    "robustbench.json",
    "figures/sandwich-l2.svg",
    "figures/sandwich-l2.pdf",
    "figures/blocks.svg",
)


def schema() -> Any:
    return json.loads((files("robustres.reports") / "schema" / "summary.schema.json").read_text())


def page_data(html: str) -> Any:
    """The data that the script of the page reads."""
    match = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', html, re.DOTALL)
    assert match is not None
    return json.loads(match.group(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_run: Any) -> Path:
    folder: Path = write_run(tmp_path_factory.mktemp("runs") / "digits")
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.mark.parametrize("name", WRITTEN)
def test_every_promised_file_is_written(folder: Path, name: str) -> None:
    assert (folder / name).stat().st_size > 0


def test_the_summary_fits_its_published_schema(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    jsonschema.Draft202012Validator(schema()).validate(summary)
    assert summary["data"]["samples"] == 200


def test_the_schema_refuses_an_accuracy_above_one(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    summary["clean"]["accuracy"] = 1.5
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate(summary)


def test_samples_csv_has_one_row_per_sample_with_the_radii_of_the_tables(folder: Path) -> None:
    wide = pd.read_csv(folder / "samples.csv").set_index("index")
    certificates = RunFolder(folder).table("certificates")
    assert len(wide) == 200
    for norm, group in certificates.groupby("norm"):
        pd.testing.assert_series_equal(
            wide[f"lipschitz_{norm}_radius"], group.set_index("index")["radius"], check_names=False
        )


def test_the_nearest_example_counts_attacks_of_other_norms(folder: Path) -> None:
    wide = pd.read_csv(folder / "samples.csv").set_index("index")
    attacks = RunFolder(folder).table("attacks")
    nearest = attacks[attacks["fooled"]].groupby("index")["l2"].min().reindex(wide.index).fillna(math.inf)
    pd.testing.assert_series_equal(wide["distance_l2"], nearest.where(wide["correct"], 0.0), check_names=False)


def test_the_page_shows_the_numbers_of_the_tables(folder: Path) -> None:
    page = page_data((folder / "report.html").read_text())
    wide = pd.read_csv(folder / "samples.csv")
    assert page["samples"]["index"] == wide["index"].tolist()
    for norm in ("l2", "linf"):
        shown = page["samples"]["norms"][norm]
        for row, radius, distance in zip(wide.to_dict("records"), shown["radius"], shown["distance"], strict=True):
            assert radius <= row[f"radius_{norm}"] * (1 + 1e-12)
            assert radius == pytest.approx(row[f"radius_{norm}"], rel=2e-3)
            if math.isinf(row[f"distance_{norm}"]):
                assert distance is None
            else:
                assert distance >= row[f"distance_{norm}"] * (1 - 1e-12)
                assert distance == pytest.approx(row[f"distance_{norm}"], rel=2e-3)


def test_the_sandwich_figure_passes_through_the_counted_accuracies(folder: Path) -> None:
    figure = page_data((folder / "report.html").read_text())["figures"]["sandwich-l2"]
    summary = json.loads((folder / "summary.json").read_text())
    (values,) = figure["spec"]["datasets"].values()
    rows = {row["eps"]: row for row in values}
    for certificate in summary["certificates"]:
        if certificate["norm"] == "l2":
            assert rows[certificate["eps"]]["certified"] == pytest.approx(certificate["accuracy"], abs=1e-12)
    for attack in summary["attacks"]:
        if attack["norm"] == "l2":
            assert rows[attack["eps"]]["attacked"] <= attack["accuracy"] + 1e-12
            assert rows[attack["eps"]]["certified"] <= rows[attack["eps"]]["attacked"]


def test_a_script_in_a_name_stays_text(tmp_path: Path, write_run: Any) -> None:
    evil = '</script><script>alert("x")</script>'
    data = {"source": evil, "classes": 10, "class_names": [f"{evil}{i}" for i in range(10)]}
    folder = write_run(tmp_path / "evil", count=40, data=data, model={"source": evil, "name": evil})
    html = write_report(folder).read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert page_data(html)["samples"]["classes"][0] == f"{evil}0"
    assert "<script>alert" not in (folder / "report.md").read_text()


def test_a_minimal_manifest_is_enough(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "bare", count=20)
    RunFolder(folder).write_manifest({"created": "now"})
    html = write_report(folder).read_text()
    assert "bare" in html
    jsonschema.Draft202012Validator(schema()).validate(json.loads((folder / "summary.json").read_text()))


def test_a_run_without_rows_gets_a_report_that_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    RunFolder(folder).write_manifest({})
    assert "contains no samples" in write_report(folder).read_text()


def test_a_refused_network_is_named_with_its_operation(tmp_path: Path, write_run: Any) -> None:
    refused = [{"path": "stage.attention", "operation": "softmax"}]
    folder = write_run(tmp_path / "refused", count=20, without=("certificates",), lipschitz=None, refused=refused)
    html = write_report(folder).read_text()
    assert "softmax" in html
    assert "There is no certificate" in html
    assert "nothing is proven" in html


def test_a_violated_sandwich_is_a_defect_in_red(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "violated", count=40)
    for part in ("0000", "0001"):
        certificates = RunFolder(folder).part("certificates", part).assign(radius=5.0)
        RunFolder(folder).write_part("certificates", part, certificates)
    html = write_report(folder).read_text()
    assert "certificate is defective" in html
    assert 'class="sentence defect"' in html


def test_a_folder_without_a_run_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains no run"):
        write_report(tmp_path)


def test_reports_need_no_torch() -> None:
    code = "import sys, robustres.reports; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
