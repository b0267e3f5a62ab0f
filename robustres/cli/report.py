"""`robustres report`: make a run's report again from its tables."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from robustres.cli.options import Json, Require
from robustres.cli.run import require_met


def report(
    folder: Annotated[Path, typer.Argument(help="A run folder, such as runs/demo/constrained.")],
    require: Require = None,
    json: Json = False,
) -> None:
    """Write report.html, report.md, the CSV tables and the figures again, from the tables of a run alone.

    Example: robustres report runs/demo/constrained
    """
    from robustres.reports import write_report
    from robustres.results import Requirement

    asked = [Requirement.read(text) for text in require or ()]
    page = write_report(folder)
    text = (folder / "summary.json").read_text()
    typer.echo(text if json else f"report: {page}", nl=not json)
    summary = json_module.loads(text)
    summary["requirements"] += [one.met(summary) for one in asked]
    require_met(summary, quiet=json)
