"""`robustres demo`: three small networks on the embedded digits, attacked and certified, in a minute or two."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustres.cli import console
from robustres.cli.options import Device, Json, Seed
from robustres.cli.values import pick_device

if TYPE_CHECKING:
    from robustres.threat import Norm
    from robustres.training import Recipe

# Name on the console and preset.
NETWORKS = {"plain": "plain-tiny", "residual": "residual-tiny", "constrained": "orthogonal-digits"}
# What differs from the default recipe; the constrained network has the recipe of its preset.
UNCONSTRAINED: dict[str, dict[str, Any]] = {
    "plain": {"loss": "clean", "epochs": 8},
    "residual": {"loss": "clean", "epochs": 6},
}
EPS: dict["Norm", tuple[float, ...]] = {"linf": (0.1,), "l2": (0.25, 0.5, 1.0)}
ATTACKS: dict[str, dict[str, Any]] = {"fgsm": {}, "pgd": {}, "fmn": {"steps": 40}}
EFFORT = 1.0
HEADLINE = 0.5


def demo(
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="Folder for the three runs and their comparison.")] = Path(
        "runs/demo"
    ),
    json: Json = False,
) -> None:
    """Train three small networks on 1,797 scanned digits, attack and certify each, and write a report.

    Takes a minute or two on one core and downloads nothing. Example: robustres demo --seed 1
    """
    where = pick_device(device)
    with console.progress_bar(quiet=json) as progress:
        summaries = demonstrate(out, seed=seed, device=where, progress=progress)
    if json:
        typer.echo((out / "summary.json").read_text(), nl=False)
        return
    _print_verdict(summaries)
    console.output.print(f"report: {out / 'report.html'}")


def demonstrate(
    out: Path | str = "runs/demo",
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, dict[str, Any]]:
    """Train, attack and certify the three networks, write their comparison into `out`; return the summary of each by
    name.
    """
    from robustres.guard import single_thread
    from robustres.reports import write_comparison

    folders = {name: Path(out) / name for name in NETWORKS}
    with single_thread():
        summaries = {
            name: _train_and_evaluate(name, folder, seed=seed, device=device, progress=progress)
            for name, folder in folders.items()
        }
        progress("compare", 0, 1)
        write_comparison(folders, Path(out))
        progress("compare", 1, 1)
    return summaries


def recipe_of(name: str, seed: int) -> "Recipe":
    """The recipe of one of the networks."""
    from robustres.training import RECIPES, Recipe

    if name in UNCONSTRAINED:
        return Recipe(**UNCONSTRAINED[name], seed=seed)
    return replace(RECIPES[NETWORKS[name]], seed=seed)


def _train_and_evaluate(name: str, folder: Path, *, seed: int, device: str, progress: Any) -> dict[str, Any]:
    """Train one network, save it, evaluate the saved file, and return the summary."""
    from robustres.data import load_data
    from robustres.evaluation import Settings, evaluate
    from robustres.models import load_model, preset, save_checkpoint
    from robustres.reports import write_report
    from robustres.results import TRAINING
    from robustres.training import train

    model = preset(NETWORKS[name], seed=seed)
    recipe = recipe_of(name, seed)
    history = train(
        model, load_data("digits", split="train"), load_data("digits", split="validation"), recipe, device=device,
        on_epoch=lambda epoch: progress(f"{name}: train", epoch.epoch, recipe.epochs),
    )  # fmt: skip
    checkpoint = folder / "model.safetensors"
    save_checkpoint(model, checkpoint)
    settings = Settings(eps=EPS, attacks=tuple(ATTACKS), attack_settings=ATTACKS, seed=seed, effort=EFFORT)
    run = evaluate(
        load_model(str(checkpoint)), load_data("digits"), folder, settings, name=name, device=device,
        overwrite=True, command=console.invocation(),
        progress=lambda stage, done, total: progress(f"{name}: {stage}", done, total),
    )  # fmt: skip
    run.folder.finish_part(TRAINING, {"training": history.rows})
    run.folder.seal()
    write_report(folder)
    return run.summary


def _print_verdict(summaries: dict[str, dict[str, Any]]) -> None:
    from robustres.results import rounded_text

    rows = []
    for name, summary in summaries.items():
        attacked, certified = (_at_headline(summary[side]) for side in ("robust", "certificates"))
        clean, upper = summary["clean"]["accuracy"], summary["lipschitz"]["upper"]
        shares = (console.percent(clean), console.percent(attacked), console.percent(certified, up=False))
        rows.append((name, *shares, rounded_text(upper, up=True, digits=3)))
    console.print_table(
        f"Share of 360 unseen digits, for perturbations of l2 norm up to {HEADLINE}",
        ("network", "correct", "survive attacks", "proved robust", "Lipschitz bound"),
        rows,
        caption=(
            "plain: convolutions without skips. residual: ordinary blocks x + F(x).\n"
            "constrained: residual blocks that cannot stretch distances.\n"
            "The true robust share lies between 'proved robust' and 'survive attacks'."
        ),
    )


def _at_headline(rows: list[dict[str, Any]]) -> float | None:
    """The accuracy in these rows of a summary at the eps of the headline."""
    return next((row["accuracy"] for row in rows if (row["norm"], row["eps"]) == ("l2", HEADLINE)), None)
