"""`robustres train`: train a network on images and write a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from robustres.cli import console, options


def train(
    network: Annotated[str, typer.Argument(help="A preset, such as constrained-tiny; an unknown name lists them all.")],
    data: options.Data,
    loss: Annotated[str, typer.Option("--loss", help="clean | emma | gloro (certified margins)")] = "clean",
    eps: Annotated[str, typer.Option("--eps", help="l2 radius that the margin losses ask for.")] = "0.5",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training split.")] = 20,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Largest learning rate.")] = 5e-3,
    batch_size: options.BatchSize = 64,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    data_root: options.DataRoot = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the checkpoint.")] = Path("runs/train"),
    json: options.Json = False,
) -> None:
    """Train NETWORK on the training split of DATA, keep the epoch that is best on the validation split.

    Example: robustres train constrained-tiny --data digits --loss emma --eps 0.9 --epochs 30
    """
    from robustres.data import load_data
    from robustres.models import preset, save_checkpoint
    from robustres.results import json_text
    from robustres.threat import parse_number
    from robustres.training import Recipe
    from robustres.training import train as run_training

    recipe = Recipe(
        loss=loss, eps=parse_number(eps), epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, seed=seed  # type: ignore[arg-type]
    )  # fmt: skip
    where = options.pick_device(device)
    parts = {name: load_data(data, root=data_root, split=name) for name in ("train", "validation")}
    model = preset(network, seed=seed)
    with console.progress_bar(quiet=json) as progress:
        history = run_training(
            model, parts["train"], parts["validation"], recipe, device=where,
            on_epoch=lambda epoch: progress("train", epoch.epoch, epochs),
        )  # fmt: skip
    checkpoint = out / "model.safetensors"
    save_checkpoint(model, checkpoint)
    best = history.epochs[history.best_epoch - 1]
    if json:
        typer.echo(json_text({"checkpoint": str(checkpoint), "epoch": best.epoch, "clean": best.clean}), nl=False)
    else:
        console.output.print(
            f"epoch {best.epoch} is best on the validation split: {console.percent(best.clean)} correct"
        )
        console.output.print(f"checkpoint: {checkpoint}")
