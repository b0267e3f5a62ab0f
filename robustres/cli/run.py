"""Shared by evaluate, attack and certify: run, report, print."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from robustres.cli import console
from robustres.cli.options import Running, Source
from robustres.cli.values import pick_device

if TYPE_CHECKING:
    import pandas as pd

    from robustres.evaluation import Settings


def run_and_report(
    model: str,
    data: str,
    settings: "Settings",
    source: Source,
    running: Running,
    *,
    cache: bool = True,
    npz: bool = False,
) -> None:
    """Evaluate the model on the data, write the run folder with its report, and print the summary.

    npz: also write the adversarial examples as a NumPy archive.
    """
    from robustres.evaluation import evaluate
    from robustres.evaluation.plan import check_countable
    from robustres.reports import write_report
    from robustres.results import Requirement, advice, write_archive

    required = [Requirement.read(text) for text in running.require or ()]
    check_countable(required, settings)
    where, json = pick_device(running.device), running.json
    loaded, images = source.load(model, data)
    folder = running.out or Path("runs") / f"{slug(model)}-{slug(data)}"
    try:
        with console.progress_bar(quiet=json) as progress:
            run = evaluate(
                loaded, images, folder, settings, device=where, overwrite=running.overwrite, cache=cache,
                require=required, command=console.invocation(), progress=progress,
            )  # fmt: skip
            if not run.first:
                return
            if npz:
                write_archive(run.folder)
            progress("report", 0, 1)
            page = write_report(folder)
            progress("report", 1, 1)
    except KeyboardInterrupt:
        again = shlex.join(word for word in console.invocation() if word != "--overwrite")
        console.notes.print(
            f"interrupted; finished parts are kept in {folder}: continue with {again}", markup=False, soft_wrap=True
        )
        raise typer.Exit(130) from None
    if json:
        typer.echo((folder / "summary.json").read_text(), nl=False)
    else:
        print_summary(run.summary)
        if said := advice(run.folder.manifest(), run.summary):
            console.output.print(said, markup=False)
        print_diagnosis(run.folder.table("diagnosis"))
        console.output.print(f"report: {page}")
    require_met(run.summary, quiet=json)


def require_met(summary: dict[str, Any], *, quiet: bool = False) -> None:
    """Print which thresholds were met, and exit with code 1 if one was not."""
    failed = [row for row in summary["requirements"] if not row["met"]]
    if not quiet:
        for row in summary["requirements"]:
            word = "pass" if row["met"] else "FAIL"
            console.output.print(f"{word}: {row['require']} (found {console.percent(row['share'])})", markup=False)
    if failed:
        raise typer.Exit(1)


def slug(spec: str) -> str:
    """A model or data specification as part of a folder name."""
    stem = Path(spec.split(":", 1)[-1]).name
    for ending in (".onnx", ".safetensors", ".pt2", ".pt", ".pth", ".npz"):
        stem = stem.removesuffix(ending)
    return "".join(character if character.isalnum() or character in "._-" else "-" for character in stem)


def print_summary(summary: dict[str, Any]) -> None:
    """The accuracies and the block ledger on the console."""
    total = summary["data"]["samples"]

    def line(what: str, row: dict[str, Any], count: str) -> tuple[str, ...]:
        eps = console.eps_text(row["eps"]) if "eps" in row else ""
        return (
            what,
            row.get("norm", ""),
            eps,
            f"{row[count]} / {total}",
            console.percent(row["accuracy"], up=False if count == "certified" else None),
        )

    rows = [
        line("clean", summary["clean"], "correct"),
        *(line(_survived(row), row, "robust") for row in summary["attacks"]),
        *(line("survive all of them", row, "robust") for row in _together(summary)),
        *(
            line(f"certified by {row['certificate']} ({row['guarantee']})", row, "certified")
            for row in summary["certificates"]
        ),
    ]
    console.print_table("Robustness", ("", "norm", "eps", "samples", "share"), rows)
    if summary["lipschitz"] is not None:
        print_blocks(summary["lipschitz"]["blocks"], summary["lipschitz"]["upper"], summary["lipschitz"]["lower"])
    elif summary["refused"]:
        refused = "; ".join(f"{row['operation']} at {row['path'] or 'the top'}" for row in summary["refused"])
        console.output.print(f"no certificate: no bound is known for {refused}", markup=False)


def print_diagnosis(checks: "pd.DataFrame") -> None:
    """Print the result of the gradient-masking check for every attack that was checked."""
    for _, rows in checks.groupby(["attack", "norm", "eps"], sort=False):
        first = rows.iloc[0]
        subject = f"{first['attack']} at {first['norm']} {console.eps_text(first['eps'])}"
        signs = rows["verdict"][rows["suspicious"]]
        said = (
            "signs of masked gradients, its robust accuracy is too high"
            if len(signs)
            else "no sign of masked gradients"
        )
        console.output.print(f"{subject}: {said}", markup=False, highlight=False)
        for sign in signs:
            console.output.print(f"  {sign}", markup=False, highlight=False)


def _survived(row: dict[str, Any]) -> str:
    """What the samples of an attack's row did."""
    return f"correct under {row['attack']} (average case)" if row.get("case") else f"survive {row['attack']}"


def _together(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The accuracy under all attacks together, if there was more than one."""
    return summary["robust"] if len({(row["attack"], row["norm"]) for row in summary["attacks"]}) > 1 else []


def print_blocks(blocks: list[dict[str, Any]], upper: float, lower: float) -> None:
    """The block ledger: every block with its bounds and its estimate."""
    rows = [
        (row["name"], row["kind"], *(bound(row[key]) for key in ("textbook", "joint", "upper")), estimate(row["lower"]))
        for row in blocks
    ]
    console.print_table(
        "l2 Lipschitz constant, block by block",
        ("block", "kind", "textbook", "joint", "bound", "estimate"),
        rows,
        caption=f"whole network: bound {bound(upper)}, estimate from below {estimate(lower)}",
    )


def bound(value: float | None) -> str:
    """Four digits, rounded up; a dash if there is no number."""
    from robustres.results import rounded_text

    return rounded_text(value, up=True, missing="-")


def estimate(value: float | None) -> str:
    """Four digits, rounded down; a dash if there is no number."""
    from robustres.results import rounded_text

    return rounded_text(value, up=False, missing="-")
