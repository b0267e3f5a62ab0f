"""`robustres evaluate`: attack and certify a model on data, and write the report."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from robustres.cli import console
from robustres.cli.options import BatchSize, Data, DataRoot, Device, Json, Limit, Seed, pick_device


def evaluate(
    model: Annotated[str, typer.Argument(help="checkpoint.safetensors | package.module:factory | FILE.onnx")],
    data: Data,
    norm: Annotated[
        str, typer.Option("--norm", help="l2 | linf: the norm of the attacks; l2 radii always come along.")
    ] = "linf",
    eps: Annotated[
        str | None, typer.Option("--eps", help="Budgets in pixel units on [0, 1]: 1/255,2/255,8/255")
    ] = None,
    attacks: Annotated[str, typer.Option("--attacks", help="Comma-separated attack names.")] = "fgsm,pgd",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of PGD.")] = 20,
    mean: Annotated[
        str | None, typer.Option("--mean", help="Normalisation that the network expects, per channel.")
    ] = None,
    std: Annotated[str | None, typer.Option("--std", help="Standard deviations, per channel; with --mean.")] = None,
    joint: Annotated[bool, typer.Option(help="Bound blocks jointly (tighter) or by the textbook bound alone.")] = True,
    limit: Limit = None,
    batch_size: BatchSize = 256,
    device: Device = "auto",
    seed: Seed = 0,
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/MODEL-DATA.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Report samples with non-finite logits and go on.")
    ] = False,
    json: Json = False,
) -> None:
    """Attack and certify MODEL on DATA; write the report, the tables and summary.json.

    Example: robustres evaluate net.onnx --data npy:cifar10-100 --mean 0.4914,0.4822,0.4465
    --std 0.2471,0.2435,0.2616 --norm linf --eps 1/255,2/255,8/255
    """
    from robustres.data import load_data
    from robustres.errors import InputError
    from robustres.evaluation import CONVENTIONAL_EPS, Settings
    from robustres.evaluation import evaluate as run_evaluation
    from robustres.models import load_model
    from robustres.reports import write_report
    from robustres.threat import parse_numbers

    if norm not in CONVENTIONAL_EPS:
        raise InputError(f"--norm must be one of {', '.join(CONVENTIONAL_EPS)}, got {norm!r}")
    budgets = CONVENTIONAL_EPS[norm] if eps is None else parse_numbers(eps)
    settings = Settings(
        eps={norm: budgets},
        attacks=tuple(attacks.split(",")),
        attack_settings={"pgd": {"steps": steps}},
        batch_size=batch_size,
        seed=seed,
        joint=joint,
        keep_going=keep_going,
    )
    where = pick_device(device)
    images = load_data(data, root=data_root, limit=limit)
    statistics = {name: parse_numbers(text) for name, text in (("mean", mean), ("std", std)) if text is not None}
    loaded = load_model(model, input_shape=images.image_shape, **statistics)
    folder = out or Path("runs") / f"{_slug(model)}-{_slug(data)}"
    try:
        with console.progress_bar(quiet=json) as progress:
            run = run_evaluation(loaded, images, folder, settings, device=where, command=sys.argv, progress=progress)
            progress("report", 0, 1)
            page = write_report(folder)
            progress("report", 1, 1)
    except KeyboardInterrupt:
        console.notes.print(f"interrupted; run the same command again to resume from {folder}")
        raise typer.Exit(130) from None
    if json:
        typer.echo((folder / "summary.json").read_text(), nl=False)
    else:
        _print_summary(run.summary)
        console.output.print(f"report: {page}")


def _slug(spec: str) -> str:
    stem = Path(spec.split(":", 1)[-1]).name.removesuffix(".onnx").removesuffix(".safetensors")
    return "".join(character if character.isalnum() or character in "._-" else "-" for character in stem)


def _print_summary(summary: dict[str, Any]) -> None:
    total = summary["data"]["samples"]
    rows = [
        ("clean", "", "", f"{summary['clean']['correct']} / {total}", console.percent(summary["clean"]["accuracy"]))
    ]
    for attack in summary["attacks"]:
        rows.append(
            (
                f"survive {attack['attack']}",
                attack["norm"],
                console.eps_text(attack["eps"]),
                f"{attack['robust']} / {total}",
                console.percent(attack["accuracy"]),
            )
        )
    for certificate in summary["certificates"]:
        rows.append(
            (
                f"certified ({certificate['guarantee']})",
                certificate["norm"],
                console.eps_text(certificate["eps"]),
                f"{certificate['certified']} / {total}",
                console.percent(certificate["accuracy"]),
            )
        )
    console.print_table("Robustness", ("", "norm", "eps", "samples", "share"), rows)
    if summary["lipschitz"] is None:
        refused = "; ".join(f"{row['operation']} at {row['path'] or 'the top'}" for row in summary["refused"])
        console.output.print(f"no certificate: no bound is known for {refused}")
        return
    blocks = [
        (
            row["name"],
            row["kind"],
            *(_number(row[key]) for key in ("shortcut", "branch", "textbook", "joint", "upper", "lower")),
        )
        for row in summary["lipschitz"]["blocks"]
    ]
    header = ("block", "kind", "shortcut", "branch", "textbook", "joint", "bound", "estimate")
    console.print_table(
        "l2 Lipschitz constant, block by block",
        header,
        blocks,
        caption=f"whole network: bound {_number(summary['lipschitz']['upper'])}, "
        f"estimate from below {_number(summary['lipschitz']['lower'])}",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
