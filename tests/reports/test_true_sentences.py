"""Printed statements are true: rounding directions, sentences, axes, captions, comparisons, tables for papers."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustres.reports import write_comparison, write_report
from robustres.reports.eps_axis import ticks
from robustres.reports.radius_figure import radius_figures
from robustres.reports.run import load_run
from robustres.reports.sandwich import per_sample
from robustres.reports.sandwich_figure import sandwich_figures
from robustres.reports.verdict import verdict
from robustres.results import RunFolder, rounded_text, share_text


@given(st.floats(1e-12, 1e12), st.integers(2, 6))
def test_a_radius_is_never_shown_larger_nor_a_bound_smaller_than_it_is(value: float, digits: int) -> None:
    low, high = (float(rounded_text(value, up=up, digits=digits)) for up in (False, True))
    assert low <= value <= high
    assert high - low <= 1.0001 * 10 ** (math.floor(math.log10(value)) - digits + 1)


@given(st.integers(0, 400), st.integers(1, 400))
def test_a_share_from_below_is_rounded_down_and_one_from_above_up(count: int, total: int) -> None:
    share = min(count, total) / total
    low, high = (float(share_text(share, up=up)[:-2]) for up in (False, True))
    assert low - 1e-9 <= 100 * share <= high + 1e-9
    assert high - low <= 0.1 + 1e-9


def test_gallery_cards_round_radii_down_and_distances_up(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "run", count=60)
    html = write_report(folder).read_text()
    cards = re.findall(
        r'data-index="(\d+)" data-radius="([^"]+)" data-distance="([^"]+)".*?certified (\S+) ≤ true ≤ (\S+) ',
        html,
        re.S,
    )
    assert len(cards) > 12
    for _, radius, distance, shown, away in cards:
        assert float(shown) <= float(radius)
        assert float(away) >= float(distance)


def without(folder: Path, table: str) -> None:
    """The run without one of its tables."""
    for part in ("0000", "0001"):
        record = folder / "parts" / f"{part}.json"
        files = {name: digest for name, digest in json.loads(record.read_text()).items() if not name.startswith(table)}
        record.write_text(json.dumps(files))
        (folder / "parts" / f"{table}-{part}.parquet").unlink()


def sentences(folder: Path) -> list[str]:
    run = load_run(folder)
    return [sentence.text for sentence in verdict(run, per_sample(run))]


def test_samples_that_were_not_attacked_are_not_said_to_survive_attacks(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "run", count=60)
    without(folder, "attacks")
    said = sentences(folder)
    assert not [text for text in said if "attacks leave" in text or "no attack was run" in text]
    assert any("at least" in text and "(proven)" in text for text in said)
    assert "No attack was run in this norm" in write_report(folder).read_text()
    without(folder, "certificates")
    assert any("nothing is proven and no attack was run" in text for text in sentences(folder))


def test_sentences_mention_only_requested_norms(tmp_path: Path, write_run: Any) -> None:
    settings = {"eps": {"linf": [8 / 255]}}
    folder = write_run(tmp_path / "run", count=60, settings=settings)
    said = sentences(folder)
    assert any("ℓ∞" in text for text in said)
    assert not [text for text in said if "ℓ2" in text]


def test_an_unfinished_run_says_so(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "run", count=20, samples=50)
    assert any("not finished: 20 of 50 samples" in text for text in sentences(folder))


def test_linf_axes_are_in_255ths_with_regular_ticks() -> None:
    for end in (1 / 255, 2 / 255, 8.8 / 255, 0.1, 0.3, 1.0):
        values = ticks("linf", 0.0, end, "linear")
        if end < 2 / 255:
            assert values is None
            continue
        assert values is not None
        levels = np.array(values) * 255
        assert len(values) <= 10
        assert np.allclose(levels, np.rint(levels))
        assert len(set(np.rint(np.diff(levels)).tolist())) == 1
    assert ticks("l2", 0.0, 1.0, "linear") is None


def test_a_certified_curve_that_ends_early_has_a_close_up_and_every_figure_a_logarithmic_form(
    tmp_path: Path, write_run: Any
) -> None:
    folder = write_run(tmp_path / "loose", count=60, looseness=50.0)
    run = load_run(folder)
    figures = {figure.name: figure for figure in sandwich_figures(run, per_sample(run))}
    assert set(figures) == {"sandwich-l2", "sandwich-l2-close", "sandwich-linf", "sandwich-linf-close"}
    close = pd.DataFrame(figures["sandwich-l2-close"].rows)
    assert close["eps"].max() < 0.1 * figures["sandwich-l2"].rows[-1]["eps"]
    assert ((close["certified"] > 0) & (close["certified"] < 0.9)).sum() > 30
    write_report(folder)
    for name in ("sandwich-l2-log.svg", "sandwich-l2-log.pdf", "sandwich-l2-close.svg"):
        assert (folder / "figures" / name).stat().st_size > 0
    for figure in figures.values():
        assert figure.caption.startswith("60 images of digits, ℓ")


def test_numbers_of_figures_are_shares_where_they_are_shares(tmp_path: Path, write_run: Any) -> None:
    html = write_report(write_run(tmp_path / "run", count=60)).read_text()
    table = html.split('aria-label="Numbers of: Accuracy against ℓ2')[1].split("</table>")[0]
    rows = re.findall(r"<tr>((?:<td>[^<]*</td>)+)</tr>", table)
    assert rows
    for row in rows:
        _, *shares = re.findall(r"<td>([^<]*)</td>", row)
        assert all(share == "–" or share.endswith(" %") for share in shares)


def minimum_norm(folder: Path) -> None:
    """Add an attack that searches for the nearest example."""
    for part in ("0000", "0001"):
        rows = RunFolder(folder).part("attacks", part)
        nearest = rows[(rows["attack"] == "pgd") & (rows["norm"] == "l2")].drop_duplicates("index")
        RunFolder(folder).write_part(
            "attacks", part, pd.concat([rows, nearest.assign(attack="fmn", eps=np.nan)], ignore_index=True)
        )


def test_a_comparison_shows_minimum_norm_attacks_and_every_attack_that_counts(tmp_path: Path, write_run: Any) -> None:
    one, two = (write_run(tmp_path / name, count=60, seed=seed) for name, seed in (("one", 0), ("two", 0)))
    minimum_norm(one)
    write_comparison({"one": one, "two": two}, tmp_path / "both")
    page = (tmp_path / "both" / "report.md").read_text()
    assert page.count("| fmn |") == 3  # at each of the eps of l2
    assert "attacked differently (one by fgsm, fmn, pgd; two by fgsm, pgd" in page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    shares: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row[0].strip("| ") in ("fgsm", "pgd", "fmn", "all attacks together"):
            shown = re.findall(r"[\d.]+(?= %)", row[3])
            shares.setdefault((row[1], row[2]), []).extend(map(float, shown))
    for found in shares.values():
        assert min(found) == found[-1]  # that of all attacks together, which is never below those shown


def test_runs_with_the_same_attacks_are_not_said_to_differ(tmp_path: Path, write_run: Any) -> None:
    folders = {name: write_run(tmp_path / name, count=30) for name in ("one", "two")}
    write_comparison(folders, tmp_path / "both")
    assert "attacked differently" not in (tmp_path / "both" / "report.md").read_text()


def papers(tmp_path: Path, write_run: Any) -> list[Path]:
    names = {"one_&_#1": 0, "50% {two}": 1}
    folders = {name: write_run(tmp_path / f"run{seed}", count=40, seed=seed) for name, seed in names.items()}
    write_report(folders["one_&_#1"])
    write_comparison(folders, tmp_path / "both")
    return [folders["one_&_#1"] / "tables.tex", tmp_path / "both" / "tables.tex"]


def test_the_table_for_papers_has_one_row_per_model(tmp_path: Path, write_run: Any) -> None:
    single, both = (file.read_text() for file in papers(tmp_path, write_run))
    for text, models, label in ((single, 1, "accuracy"), (both, 2, "comparison")):
        table = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip()
        assert len(table.splitlines()) == models
        assert rf"\label{{tab:{label}}}" in text
        assert r"\toprule" in text
        assert "FGSM, PGD together" in text
        columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
        assert all(line.count(" & ") == len(columns) - 1 for line in table.splitlines())
    assert r"one\_\&\_\#1" in both
    assert r"\textbf{" in both


def test_the_table_for_papers_compiles(tmp_path: Path, write_run: Any) -> None:
    engine = next(filter(None, map(shutil.which, ("pdflatex", "tectonic", "xelatex"))), None)
    if engine is None:
        pytest.skip("no TeX engine here; install one (Debian: apt-get install texlive-latex-recommended)")
    inputs = "\n".join(rf"\input{{{file}}}" for file in papers(tmp_path, write_run))
    (tmp_path / "paper.tex").write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{inputs}\end{{document}}"
    )
    extra = [] if "tectonic" in engine else ["-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run([engine, *extra, "paper.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_radii_stay_visible_where_every_requested_eps_is_far_beyond_them(tmp_path: Path, write_run: Any) -> None:
    run = load_run(write_run(tmp_path / "loose", count=60, looseness=500.0))
    for figure in radius_figures(run, per_sample(run)):
        assert "lie beyond this axis" in figure.caption
        assert "36/255" not in json.dumps(figure.spec)
