"""`robustres audit`: is a claimed Lipschitz constant true? Proven, refuted with a witness, or open."""

import csv
import io
import json as json_module
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustres.cli import console, options, values
from robustres.cli.run import slug

if TYPE_CHECKING:
    from robustres.certify import AuditReport, Witness

Claimed = Annotated[
    str | None, typer.Option("--claimed-lipschitz", help="Claimed l2 Lipschitz constant of the network.")
]
Claims = Annotated[
    Path | None,
    typer.Option("--claims", help='Claims per layer: JSON {"layer1.0.conv1": 1.0} or CSV with columns name,claimed.'),
]
AuditData = Annotated[
    str | None,
    typer.Option("--data", help="Images from which the search starts, as in evaluate; default: random images."),
]
Restarts = Annotated[int, typer.Option("--restarts", min=1, help="Number of images from which the search starts.")]
Seconds = Annotated[float, typer.Option("--seconds", min=1e-3, help="Time limit of the search, per claim.")]
Tolerance = Annotated[
    float,
    typer.Option("--tolerance", min=0, help="Relative excess over the claim attributed to rounding of the weights."),
]
Delta = Annotated[
    float | None,
    typer.Option("--delta", help="Allow probabilistic bounds, each with this failure probability, such as 1e-12."),
]
AuditOut = Annotated[Path | None, typer.Option("--out", help="Folder for the result; default runs/audit-MODEL.")]


def audit(
    model: options.Model,
    source: options.Source,
    claimed_lipschitz: Claimed = None,
    claims: Claims = None,
    data: AuditData = None,
    input_shape: options.InputShape = None,
    restarts: Restarts = 16,
    seconds: Seconds = 60.0,
    tolerance: Tolerance = 1e-5,
    delta: Delta = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    out: AuditOut = None,
    json: options.Json = False,
) -> None:
    """Check claimed l2 Lipschitz constants of MODEL, or of its layers, from both sides.

    The verdict is proven (by a bound recomputed from the weights), refuted (by a pair of inputs, saved as
    witness-*.npz) or open. Without a claim, the constants that the model's modules state are audited. Exit code 1 if a
    claim is refuted.

    Example: robustres audit net.onnx --input-shape 3,32,32 --claimed-lipschitz 1
    """
    from robustres.certify import Search
    from robustres.certify import audit as run_audit
    from robustres.results import require_own

    folder = out or Path("runs") / f"audit-{slug(model)}"
    require_own(folder, ("audit.json", "audit.csv"), marker="audit.json", entry="claims")
    table = _claims(claimed_lipschitz, claims)
    search = Search(seconds=seconds, seed=seed)
    where = values.pick_device(device)
    loaded, shape, images = source.load_with_shape(model, data, input_shape)
    with console.progress_bar(quiet=json) as progress:
        claimed = len(table or ()) or 1
        with console.clock("seconds of search, at most", seconds * claimed, progress):
            report = run_audit(
                loaded.module.to(where),
                shape,
                claimed=table,
                images=None if images is None else images.spaced(restarts),
                restarts=restarts,
                tolerance=tolerance,
                search=search,
                delta=delta,
                progress=progress,
            )
    text = _write(folder, report, {"source": loaded.source, "sha256": loaded.sha256, "parameters": loaded.parameters})
    if json:
        typer.echo(text, nl=False)
    else:
        _print(report, folder)
    if report.verdict == "refuted":
        raise typer.Exit(1)


def _claims(whole: str | None, path: Path | None) -> dict[str, float] | None:
    """The table of claims, the whole network under the empty name; None if nothing was claimed."""
    from robustres.threat import parse_number

    table = {} if whole is None else {"": parse_number(whole)}
    if path is not None:
        table = {**table, **_read_claims(path)}
    return table or None


def _read_claims(path: Path) -> dict[str, float]:
    """Read a JSON object, or a CSV file with the columns name and claimed."""
    from robustres.errors import InputError
    from robustres.threat import parse_number

    try:
        text = path.read_text()
        if path.suffix == ".csv":
            rows = {row["name"]: row["claimed"] for row in csv.DictReader(text.splitlines())}
        else:
            rows = json_module.loads(text)
        return {str(name): parse_number(str(value)) for name, value in rows.items()}
    except OSError as error:
        raise InputError(f"cannot read the claims in {path}: {error.strerror}") from error
    except (KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f'the claims in {path} must be a JSON object {{"layer": 1.0}} or CSV with the columns name,claimed '
            f"and numbers; found {error}"
        ) from error


def _write(folder: Path, report: "AuditReport", model: dict[str, Any]) -> str:
    """Write audit.json, audit.csv and a witness for every refuted claim; return the JSON."""
    from robustres.results import csv_text, json_text, write_atomically

    frame = report.to_frame()
    rows = [{str(column): value for column, value in record.items()} for record in frame.to_dict(orient="records")]
    for position, (record, row) in enumerate(zip(rows, report.rows, strict=True)):
        record["upper"] = row.bound.upper if math.isfinite(row.bound.upper) else None
        record["witness"] = None
        if row.verdict == "refuted":
            record["witness"] = f"witness-{position}-{slug(row.name or 'network')}.npz"
            write_atomically(folder / record["witness"], _archive(row.witness))
    result = {"verdict": report.verdict, "tolerance": report.tolerance, "norm": "l2", "model": model, "claims": rows}
    text = json_text(result)
    write_atomically(folder / "audit.csv", csv_text(frame).encode())
    write_atomically(folder / "audit.json", text.encode())
    return text


def _archive(witness: "Witness") -> bytes:
    """The pair, both outputs and the ratio as an npz archive; everything is float64 and without a batch axis."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(
        buffer,
        x=witness.x.numpy(),
        other=witness.other.numpy(),
        answer=witness.answer.numpy(),
        other_answer=witness.other_answer.numpy(),
        ratio=np.float64(witness.ratio),
    )
    return buffer.getvalue()


def _print(report: "AuditReport", folder: Path) -> None:
    rows = [
        (
            row.name or "(network)",
            f"{row.claimed:.6g}",
            f"{row.bound.lower:.6g}",
            f"{row.bound.upper:.6g}",
            row.verdict,
            row.bound.method,
        )
        for row in report.rows
    ]
    header = ("layer", "claimed", "attained (from below)", "bound", "verdict", "bound by")
    console.print_table("Claimed l2 Lipschitz constants", header, rows, caption=f"verdict: {report.verdict}")
    for row in report.rows:
        if row.refused:
            listed = "; ".join(map(str, row.refused))
            console.output.print(f"no bound of {row.name or 'the network'}: no rule for {listed}", markup=False)
    console.output.print(f"written: {folder / 'audit.json'}", markup=False)
