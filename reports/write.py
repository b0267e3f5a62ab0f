"""Write all files that are made from the tables of one run."""

from pathlib import Path
from typing import Any

import pandas as pd

from robustres.reports.accuracies import accuracy_rows
from robustres.reports.block_figure import block_figures
from robustres.reports.confusion_figure import confusion_figures
from robustres.reports.figure import Figure
from robustres.reports.files import figure_data, grouped, write_figures, write_json
from robustres.reports.gallery import gallery
from robustres.reports.hub import front_matter
from robustres.reports.ledger import costliest_block, ledger
from robustres.reports.model_table import model_columns, model_row
from robustres.reports.provenance import command_line, guarantees, provenance_rows
from robustres.reports.radius_figure import radius_figures
from robustres.reports.records import records
from robustres.reports.render import page_assets, render
from robustres.reports.robustbench import robustbench_entries
from robustres.reports.run import Run, load_run
from robustres.reports.sample_table import page_samples, wide_samples
from robustres.reports.sandwich import OUTCOMES, per_sample
from robustres.reports.sandwich_figure import sandwich_figures
from robustres.reports.standing import standings
from robustres.reports.training_figure import training_figures
from robustres.reports.verdict import lipschitz_sentence, verdict
from robustres.results import csv_text, write_atomically


def write_report(folder: Path | str) -> Path:
    """Write the report of the run in `folder` beside its tables and return the path of report.html.

    The files are report.html (self-contained), report.md, tables.tex, model_card.md, samples.csv, blocks.csv,
    summary.json, robustbench.json and figures/ (SVG and PDF). Raises: InputError if the folder contains no run.
    """
    folder = Path(folder)
    run = load_run(folder)
    samples = per_sample(run)
    blocks = ledger(run)
    figures = [
        *sandwich_figures(run, samples),
        *block_figures(run, blocks),
        *radius_figures(run, samples),
        *confusion_figures(run, samples),
        *training_figures(run),
    ]
    values = _values(run, samples, blocks, figures)
    write_figures(folder, figures)
    for template in ("report.md", "tables.tex"):
        write_atomically(folder / template, render(template, **values).encode())
    card = front_matter(run) + "\n" + render("model_card.md", **values)
    write_atomically(folder / "model_card.md", card.encode())
    write_atomically(folder / "samples.csv", csv_text(wide_samples(run, samples)).encode())
    write_atomically(folder / "blocks.csv", csv_text(blocks).encode())
    write_json(folder / "summary.json", run.summary)
    write_json(folder / "robustbench.json", robustbench_entries(run))
    page = {"figures": figure_data(figures), "samples": page_samples(run, samples)}
    html = render("report.html", page=page, assets=page_assets(), cards=gallery(run, samples), **values)
    write_atomically(folder / "report.html", html.encode())
    return folder / "report.html"


def _values(run: Run, samples: pd.DataFrame, blocks: pd.DataFrame, figures: list[Figure]) -> dict[str, Any]:
    return {
        "run": run,
        "verdict": verdict(run, samples),
        "lipschitz": lipschitz_sentence(run),
        "standings": standings(run, samples),
        "accuracies": accuracy_rows(run),
        "models": [model_row(run, samples)],
        "columns": model_columns([run]),
        "blocks": records(blocks),
        "costliest": costliest_block(blocks),
        "groups": grouped(figures),
        "diagnosis": records(run.tables["diagnosis"]),
        "outcomes": OUTCOMES,
        "provenance": provenance_rows(run),
        "command": command_line(run),
        "guarantees": guarantees(run),
    }
