"""`robustres report`: make a run's report again from its tables."""

from pathlib import Path
from typing import Annotated

import typer


def report(folder: Annotated[Path, typer.Argument(help="A run folder, such as runs/demo/constrained.")]) -> None:
    """Write report.html, report.md, the CSV tables and the figures again, from the tables of a run alone."""
    from robustres.reports import write_report

    typer.echo(f"report: {write_report(folder)}")
