"""`robustres compare`: several runs side by side."""

from pathlib import Path
from typing import Annotated

import typer

from robustres.cli import options


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, such as runs/demo/plain runs/demo/residual.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the comparison.")] = Path("runs/comparison"),
    json: options.Json = False,
) -> None:
    """Align runs by sample, test their differences (McNemar) and write one report.

    Example: robustres compare runs/demo/residual runs/demo/constrained
    """
    from robustres.errors import InputError
    from robustres.reports import write_comparison

    names = {folder.name: folder for folder in runs}
    if len(runs) < 2:
        raise InputError(f"a comparison needs at least two runs, got {len(runs)}")
    if len(names) < len(runs):
        names = {str(folder): folder for folder in runs}
    page = write_comparison(names, out)
    typer.echo((out / "summary.json").read_text() if json else f"report: {page}", nl=not json)
