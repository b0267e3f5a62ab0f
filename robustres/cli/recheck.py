"""`robustres recheck`: the local certificates that a run kept, proved again."""

from pathlib import Path
from typing import Annotated

import typer

from robustres.cli import console
from robustres.cli.options import DATA_FORMS, Device, Download, Json
from robustres.cli.replay import Words
from robustres.cli.values import pick_device

Images = Annotated[
    str | None,
    typer.Option("--data", help=f"Compare the images with those of this data, too: {DATA_FORMS}"),
]


def recheck(
    run: Annotated[Path, typer.Argument(help="A run folder that `certify --keep-certificates` wrote.")],
    model: Words = None,
    data: Images = None,
    device: Device = "auto",
    download: Download = False,
    json: Json = False,
) -> None:
    """Prove the kept local certificates again, in float64 with every rounding charged, without any search.

    Writes recheck.csv into the run folder. Exit code 1 where a radius is not confirmed.

    Example: robustres recheck runs/kept
    """
    from robustres.evaluation import recheck as run_recheck
    from robustres.evaluation.rechecked import recheck_summary
    from robustres.results import csv_text, json_text, write_atomically

    with console.progress_bar(quiet=json) as progress:
        rows = run_recheck(run, model, data, device=pick_device(device), download=download, progress=progress)
    write_atomically(run / "recheck.csv", csv_text(rows).encode())
    summary, refuted = recheck_summary(rows), rows[~rows["confirmed"].astype(bool)]
    if json:
        failed = [{key: row[key] for key in ("index", "norm", "radius", "why")} for row in refuted.to_dict("records")]
        typer.echo(json_text({"recheck": summary, "not_confirmed": failed}), nl=False)
    else:
        lines = [(row["norm"], str(row["radii"]), str(row["confirmed"])) for row in summary]
        console.print_table("Local certificates, proved again", ("norm", "radii", "confirmed"), lines)
        for row in refuted.to_dict("records"):
            said = f"not confirmed: sample {row['index']} in {row['norm']}: {row['why']}"
            console.output.print(said, markup=False, highlight=False, soft_wrap=True)
        if data is None:
            console.output.print("The images were taken as they are in the certificates; --data compares them.")
    if len(refuted):
        raise typer.Exit(1)
