"""`robustres report`: rebuild the report of a run from its tables."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from robustres.cli.options import Json, Require
from robustres.cli.run import require_met

Format = Annotated[
    str,
    typer.Option(
        "--format", help="run (the report of a run) | auditor (the sections that robustness standards require)."
    ),
]
Statements = Annotated[
    Path | None,
    typer.Option(
        "--statements",
        help="For --format auditor: TOML file of statements that only you can make, such as the intended domain.",
    ),
]
To = Annotated[
    list[str] | None,
    typer.Option("--to", help="Also log the run to mlflow or wandb, following their own settings; repeatable."),
]
EvalResults = Annotated[
    list[str] | None,
    typer.Option(
        "--eval-results",
        help="Also write .eval_results/TASK.yaml for a benchmark of the Hugging Face hub: DATASET:TASK=MEASURE, such "
        "as org/benchmark:l2=robust@l2:0.5; repeatable.",
    ),
]


def report(
    folder: Annotated[Path, typer.Argument(help="A run folder, such as runs/demo/constrained.")],
    format: Format = "run",
    statements: Statements = None,
    to: To = None,
    eval_results: EvalResults = None,
    require: Require = None,
    json: Json = False,
) -> None:
    """Write report.html, report.md, the CSV tables and the figures again, using only the tables of a run.

    With --format auditor, write auditor.html and auditor.md: domain, property, threat model, method, results per input,
    counterexamples, limits and environment; missing information is stated explicitly.

    Example: robustres report runs/demo/constrained
    """
    from robustres.errors import InputError
    from robustres.reports import write_auditor_report, write_eval_results, write_report
    from robustres.reports.trackers import TRACKERS, track
    from robustres.results import Requirement

    if format not in ("run", "auditor"):
        raise InputError(f"--format must be run or auditor, got {format!r}")
    if statements is not None and format != "auditor":
        raise InputError("--statements requires --format auditor")
    if unknown := sorted(set(to or ()) - TRACKERS.keys()):
        raise InputError(f"--to must be {' or '.join(TRACKERS)}, got {unknown[0]!r}")
    asked = [Requirement.read(text) for text in require or ()]
    page = write_report(folder)
    if format == "auditor":
        page = write_auditor_report(folder, statements)
    text = (folder / "summary.json").read_text()
    typer.echo(text if json else f"report: {page}", nl=not json)
    for entry in eval_results or ():
        written = write_eval_results(folder, entry)
        if not json:
            typer.echo(f"for the hub: {written}")
    for name in to or ():
        tracked = track(folder, name)
        if not json:
            typer.echo(f"logged to {name}: {tracked}")
    summary = json_module.loads(text)
    summary["requirements"] += [one.met(summary) for one in asked]
    require_met(summary, quiet=json)
