"""`robustres report`: make a run's report again from its tables."""

from pathlib import Path
from typing import Annotated

import typer

from robustres.cli.options import Json


def report(
    folder: Annotated[Path, typer.Argument(help="A run folder, such as runs/demo/constrained.")],
    json: Json = False,
) -> None:
    """Write report.html, report.md, the CSV tables and the figures again, from the tables of a run alone.

    Example: robustres report runs/demo/constrained
    """
    from robustres.reports import write_report

    page = write_report(folder)
    typer.echo((folder / "summary.json").read_text() if json else f"report: {page}", nl=not json)
