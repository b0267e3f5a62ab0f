"""`robustres inspect`: what the residual connections of a network do, claim by claim."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustres.cli import console, options

if TYPE_CHECKING:
    from robustres.dynamics import Claim
    from robustres.dynamics.laboratory import Progress

Subject = Annotated[str | None, typer.Argument(help="A model, as for `evaluate`.")]
DataSpec = Annotated[str, typer.Option("--data", help=options.DATA_FORMS)]
Builtin = Annotated[
    str | None,
    typer.Option("--builtin", help="Show a claim on small built-in networks instead of MODEL: its name, or all."),
]


def inspect(
    model: Subject = None,
    data: DataSpec = "digits",
    builtin: Builtin = None,
    mean: options.Mean = None,
    std: options.Std = None,
    joint: options.Joint = True,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=2,
            help="Number of images to examine (default 60); with --builtin, to train and test on (default all).",
        ),
    ] = None,
    split: options.Split = "test",
    data_root: options.DataRoot = None,
    download: options.Download = False,
    out: options.Out = None,
    json: options.Json = False,
) -> None:
    """Show what residual connections do in MODEL, or in built-in networks: gradients, information, corrections,
    smoothness, Jacobians, the continuous view, a second task.

    Claims: gradient-flow, information, correction, smoothness, jacobians, continuous, second-task.
    Example: robustres inspect --builtin information
    """
    from robustres.errors import InputError
    from robustres.reports.inspection import Section, write_inspection

    if (model is None) == (builtin is None):
        raise InputError("give either MODEL or --builtin NAME; --builtin all shows every claim")
    if builtin is not None and split != "test":
        raise InputError(
            "--split applies to MODEL; the built-in networks are trained on the train split and shown on the test split"
        )
    folder = out or Path("runs") / (f"inspect-{builtin}" if builtin else f"inspect-{Path(str(model)).stem}")
    sections = []
    with console.progress_bar(quiet=json) as progress:
        if builtin is not None:
            subject, results, total = _builtin(builtin, data, data_root, limit, download, progress)
        else:
            subject, results, total = _model(
                str(model),
                data,
                options.Source(split, limit or 60, data_root, download, mean=mean, std=std),
                joint=joint,
                progress=progress,
            )
        progress("claims", 0, total)
        for done, claim in enumerate(results, 1):
            if isinstance(claim, tuple):
                sections.append(Section(claim[0], claim[0].replace("-", " ").capitalize(), skipped=claim[1]))
            else:
                sections.append(Section(**_contents(claim)))
            progress("claims", done, total)
        page = write_inspection(folder, subject, sections)
    if json:
        typer.echo((folder / "inspect.json").read_text(), nl=False)
        return
    rows = [(s.title, "skipped" if s.skipped else "yes" if s.holds else "no") for s in sections]
    console.print_table(subject, ("claim", "findings hold"), rows)
    console.output.print(f"report: {page}")


def _builtin(
    name: str,
    data: str,
    data_root: Path | None,
    limit: int | None,
    download: bool,
    progress: "Progress",
) -> tuple[str, Any, int]:
    """A description of the subject, an iterator over the claims, and their number."""
    from robustres.data import load_data
    from robustres.dynamics import NAMES, Parts, demonstrate

    names = NAMES if name == "all" else tuple(name.split(","))
    train, test = (
        load_data(data, root=data_root, split=split, limit=limit, download=download) for split in ("train", "test")
    )
    return f"Small networks on {data}", demonstrate(names, Parts(train, test), progress=progress), len(names)


def _model(model: str, data: str, source: options.Source, *, joint: bool, progress: "Progress") -> tuple[str, Any, int]:
    """The same for the user's network."""
    from robustres.dynamics import NAMES, inspect_model

    loaded, images = source.load(model, data)
    subject = f"{Path(model).name} on {len(images)} images of {images.source}"
    return subject, inspect_model(loaded.module, images, joint=joint, progress=progress), len(NAMES)


def _contents(claim: "Claim") -> dict[str, Any]:
    """The fields of a section; dynamics and reports are layers that do not import each other."""
    fields = ("name", "title", "statement", "source", "caption", "frame", "chart")
    findings = tuple({**asdict(finding), "holds": finding.holds} for finding in claim.findings)
    return {**{field: getattr(claim, field) for field in fields}, "findings": findings}
