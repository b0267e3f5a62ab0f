"""Write the comparison of several runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from robustres.errors import InputError
from robustres.reports.accuracies import ALL_ATTACKS
from robustres.reports.block_figure import block_domain, block_figures
from robustres.reports.figure import Figure
from robustres.reports.files import figure_data, grouped, write_figures, write_json
from robustres.reports.formats import eps_text, norm_text, share_as
from robustres.reports.ledger import ledger
from robustres.reports.measures import Measure, compare_measures, same_samples
from robustres.reports.model_table import model_columns, model_row, with_best
from robustres.reports.overlay_figure import overlay_figures
from robustres.reports.records import records
from robustres.reports.render import page_assets, render
from robustres.reports.run import Run, load_run
from robustres.reports.sample_table import wide_samples
from robustres.reports.sandwich import per_sample
from robustres.reports.standing import Standing, standings
from robustres.reports.verdict import Sentence
from robustres.results import REPORT_FILES, SCHEMA_VERSION, csv_text, require_own, write_atomically


def write_comparison(folders: Mapping[str, Path | str], out: Path | str) -> Path:
    """Write the comparison of the runs in `folders` (name -> run folder) into `out`; return its report.html.

    The files have the same names as those of a single report; samples.csv and blocks.csv have a leading column `model`,
    and summary.json contains the summary of every run. If the runs used the same images, outcomes are paired by sample
    and differences are tested. Raises: InputError for fewer than two runs, a folder without a run, or an `out` that
    contains something else under these names.
    """
    if len(folders) < 2:
        raise InputError(f"a comparison needs at least 2 runs, got {len(folders)}; for one run write a report")
    out = Path(out)
    require_own(out, REPORT_FILES, marker="summary.json", entry="runs")
    runs = [load_run(Path(folder), name=name) for name, folder in folders.items()]
    samples = [per_sample(run) for run in runs]
    ledgers = [ledger(run) for run in runs]
    figures = [*overlay_figures(runs, samples), *_block_figures(runs, ledgers)]
    pages = [_link(Path(folder) / "report.html", out) for folder in folders.values()]
    values = _values(runs, samples, ledgers, figures) | {"pages": pages}
    write_figures(out, figures)
    write_atomically(out / "report.md", render("comparison.md", **values).encode())
    write_atomically(out / "tables.tex", render("comparison.tex", **values).encode())
    wide = [wide_samples(run, frame) for run, frame in zip(runs, samples, strict=True)]
    for name, frames in (("samples", wide), ("blocks", ledgers)):
        content = csv_text(_stacked(runs, frames))
        write_atomically(out / f"{name}.csv", content.encode())
    summaries = [{"name": run.name, **run.summary} for run in runs]
    write_json(out / "summary.json", {"schema_version": SCHEMA_VERSION, "runs": summaries})
    html = render("comparison.html", page={"figures": figure_data(figures)}, assets=page_assets(), **values)
    write_atomically(out / "report.html", html.encode())
    return out / "report.html"


def _link(page: Path, out: Path) -> str | None:
    """A link from the comparison to a run's own report if that is in a folder below it; None otherwise."""
    beneath = page.is_file() and page.resolve().is_relative_to(out.resolve())
    return page.resolve().relative_to(out.resolve()).as_posix() if beneath else None


def _stacked(runs: Sequence[Run], frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    named = []
    for run, frame in zip(runs, frames, strict=True):
        frame = frame.copy()
        frame.insert(0, "model", run.name)
        named.append(frame)
    return pd.concat(named, ignore_index=True)


def _block_figures(runs: Sequence[Run], ledgers: Sequence[pd.DataFrame]) -> list[Figure]:
    """Each run's ledger under its name, on the same scale."""
    figures = []
    domain = block_domain(ledgers)
    for number, (run, blocks) in enumerate(zip(runs, ledgers, strict=True), start=1):
        for figure in block_figures(run, blocks, domain=domain):
            figures.append(replace(figure, name=f"blocks-{number}", title=run.name))
    return figures


def _values(
    runs: Sequence[Run], samples: Sequence[pd.DataFrame], ledgers: Sequence[pd.DataFrame], figures: list[Figure]
) -> dict[str, Any]:
    measures = compare_measures(runs, samples)
    return {
        "runs": runs,
        "measures": measures,
        "paired": same_samples(runs),
        "standings": _standings(runs, samples),
        "verdict": _verdict(runs, samples, measures),
        "models": with_best([model_row(run, frame) for run, frame in zip(runs, samples, strict=True)]),
        "columns": model_columns(runs),
        "blocks": [(run.name, records(blocks)) for run, blocks in zip(runs, ledgers, strict=True)],
        "groups": grouped(figures),
    }


def _standings(runs: Sequence[Run], samples: Sequence[pd.DataFrame]) -> list[Standing]:
    """Each run's standing in the main norm of the first run."""
    norm = runs[0].norms[0] if runs[0].norms else ""
    named = [standings(run, frame, name=run.name) for run, frame in zip(runs, samples, strict=True)]
    return [standing for found in named for standing in found if standing.norm == norm]


def _verdict(runs: Sequence[Run], samples: Sequence[pd.DataFrame], measures: Sequence[Measure]) -> list[Sentence]:
    """Which run has the highest certified, attacked and clean accuracy, and whether the lead is significant."""
    norm = runs[0].norms[0] if runs[0].norms else None
    eps = None if norm is None else runs[0].headline_eps(norm)
    sentences = []
    for measure in measures:
        together = measure.kind == "certificate" or measure.name == ALL_ATTACKS
        if measure.kind == "clean" or (together and (measure.norm, measure.eps) == (norm, eps)):
            sentences.append(Sentence(_leader(runs, measure), "result"))
    for run in runs:
        if run.summary["sandwich"]["violations"]:
            text = f"{run.name}: adversarial examples lie inside certified radii; its certificate is defective."
            sentences.append(Sentence(text, "defect"))
        if run.summary["refused"]:
            sentences.append(Sentence(f"{run.name} has no certificate: it has operations without a bound.", "warning"))
    different = _different_attacks(runs)
    if different:
        sentences.append(Sentence(different, "warning"))
    if not same_samples(runs):
        text = "The runs did not use the same images, so differences between them are not tested."
        sentences.append(Sentence(text, "warning"))
    return sentences


def _different_attacks(runs: Sequence[Run]) -> str:
    """A sentence if the runs were attacked differently; empty otherwise."""
    words = []
    for run in runs:
        rows = run.tables["attacks"][["attack", "norm", "eps"]].drop_duplicates()
        planned = run.manifest.get("attacks") or []
        known = {str((row["name"], {**(row.get("settings") or {}), "seed": None})) for row in planned}
        words.append(
            (set(map(str, rows.fillna({"eps": -1.0}).to_dict(orient="records"))), known, rows["attack"].unique())
        )
    if all(word[:2] == words[0][:2] for word in words):
        return ""
    listed = "; ".join(
        f"{run.name} by {', '.join(sorted(map(str, names))) or 'none'}"
        for run, (_, _, names) in zip(runs, words, strict=True)
    )
    return (
        f"The runs were attacked differently ({listed}; names, eps or settings differ), so a difference in attacked "
        "accuracy may be due to the attacks."
    )


def _leader(runs: Sequence[Run], measure: Measure) -> str:
    what = {
        "clean": "Clean accuracy",
        "attack": "Accuracy under attack (an upper bound)",
        "certificate": "Certified accuracy (a lower bound)",
    }[measure.kind]
    where = "" if measure.norm is None else f" at {norm_text(measure.norm)} eps = {eps_text(measure.eps)}"
    listed = ", ".join(
        f"{run.name} {share_as(cell.accuracy, measure.kind)}"
        for run, cell in zip(runs, measure.cells, strict=True)
        if cell is not None
    )
    others = [cell.p for cell in measure.cells if cell is not None and cell.p is not None]
    chance = ""
    if others:
        chance = " The lead is statistically significant." if max(others) < 0.05 else " The lead may be due to chance."
    return f"{what}{where}: {listed}.{chance}"
