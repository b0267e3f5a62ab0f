"""`robustres replay`: evaluate the adversarial examples stored by a run again."""

from pathlib import Path
from typing import Annotated

import typer

from robustres.cli import console
from robustres.cli.options import Device, Download, Json
from robustres.cli.values import pick_device

Words = Annotated[
    str | None, typer.Argument(help="The model, as for `evaluate`; default: the one in the run's manifest.")
]


def replay(
    run: Annotated[Path, typer.Argument(help="A run folder written by `evaluate --save-examples`.")],
    model: Words = None,
    device: Device = "auto",
    download: Download = False,
    json: Json = False,
) -> None:
    """Evaluate the stored adversarial examples again, on the model and, for an ONNX file, in onnxruntime.

    Writes replay.csv into the run folder. Exit code 1 if an example no longer fools the model.

    Example: robustres replay runs/digits-digits
    """
    from robustres.evaluation import replay as run_replay
    from robustres.evaluation.replayed import replay_summary
    from robustres.results import csv_text, json_text, write_atomically

    with console.progress_bar(quiet=json) as progress:
        rows = run_replay(run, model, device=pick_device(device), download=download, progress=progress)
    summary = replay_summary(rows)
    write_atomically(run / "replay.csv", csv_text(rows).encode())
    if json:
        typer.echo(json_text({"replay": summary}), nl=False)
    else:
        other = ("onnxruntime as then",) if "onnxruntime" in rows else ()
        lines = [
            (
                row["attack"],
                row["norm"],
                "any" if row["eps"] is None else console.eps_text(row["eps"]),
                *(str(row[key]) for key in ("examples", "same_answer", "fooled", "onnxruntime") if key in row),
            )
            for row in summary
        ]
        header = ("attack", "norm", "eps", "examples", "answered as then", "still fooled", *other)
        console.print_table("Adversarial examples, run again", header, lines)
    if not bool(rows["fooled"].all()):
        raise typer.Exit(1)
