"""`robustres enforce`: make a trained network satisfy a Lipschitz budget."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustres.cli import console, options, values

if TYPE_CHECKING:
    from torch import nn

    from robustres.data import ImageSet


def enforce(
    model: options.Model,
    lipschitz: Annotated[float, typer.Option("--lipschitz", help="Budget of every layer (spectral, clip) or block.")],
    data: options.Data,
    source: options.Source,
    method: Annotated[str, typer.Option("--method", help="spectral | clip | scale | joint")] = "spectral",
    joint: options.Joint = True,
    effort: options.Effort = None,
    device: options.Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="Folder for the new network.")] = Path("runs/enforced"),
    json: options.Json = False,
) -> None:
    """Write a copy of MODEL whose layers or blocks provably stay within a budget, and show accuracy and bound before
    and after.

    The methods spectral and clip bound every layer, a batch normalisation together with the convolution before it;
    scale and joint bound every residual block of the network's graph. Only weights change: a network that is not a
    checkpoint of robustres is written as weights for the same MODEL and loaded as MODEL@FILE.

    Example: robustres enforce runs/demo/residual/model.safetensors --lipschitz 1 --data digits

    Example: robustres enforce torchvision:resnet18@weights.pth --lipschitz 2 --method joint --data folder:DIR
    """
    from robustres.certify import lipschitz as bound
    from robustres.models import save_model
    from robustres.results import json_text, require_own, write_atomically
    from robustres.training import enforce as run_enforcement

    require_own(out, ("enforce.json", "model.safetensors", "model.json"), marker="enforce.json", entry="lipschitz")
    where = values.pick_device(device)
    loaded, images = source.load(model, data)
    with console.progress_bar(quiet=json) as progress:
        progress("enforce", 0, 1)
        enforced = run_enforcement(
            loaded.module, lipschitz=lipschitz, input_shape=images.image_shape, method=method  # type: ignore[arg-type]
        )  # fmt: skip
        progress("enforce", 1, 1)
        facts, limits = {}, values.thoroughness(joint, effort)
        for step, (name, network) in enumerate((("before", loaded.module), ("after", enforced))):
            progress("accuracy and bound", step, 2)
            facts[name] = {
                "accuracy": _accuracy(network, images, where),
                "lipschitz": bound(
                    network, images.image_shape, lower_steps=0, progress=partial(progress, f"blocks {name}"), **limits
                ).upper,
            }
        progress("accuracy and bound", 2, 2)
    written = save_model(enforced.cpu(), out, source=model)
    write_atomically(out / "enforce.json", json_text({"lipschitz": lipschitz, "method": method, **facts}).encode())
    if json:
        typer.echo(json_text({**facts, "model": written}), nl=False)
        return
    rows = [(name, console.percent(fact["accuracy"]), f"{fact['lipschitz']:.4g}") for name, fact in facts.items()]
    console.print_table(f"{method} budget {lipschitz:g}", ("", "correct", "Lipschitz bound (l2)"), rows)
    console.output.print(f"model: {written}")


def _accuracy(network: "nn.Module", images: "ImageSet", device: str) -> float:
    """Share of the images that are classified correctly."""
    import torch

    network = network.to(device)
    with torch.no_grad():
        parts = torch.split(torch.arange(len(images)), 256)
        answers = [network(images.batch(part).to(device)).argmax(dim=1).cpu() for part in parts]
    return float((torch.cat(answers) == images.labels).double().mean())
