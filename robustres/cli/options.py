"""Options that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str,
    typer.Option(
        "--data", help="digits | mnist | folder:DIR (one directory per class) | npy:DIR (images.npy, labels.npy)"
    ),
]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Where torchvision's layout lies (mnist).")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many samples.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Samples per forward pass.")]
Device = Annotated[str, typer.Option("--device", help="auto | cpu | cuda | cuda:N")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random number.")]
Json = Annotated[bool, typer.Option("--json", help="Print summary.json to standard output and nothing else.")]


def pick_device(name: str) -> str:
    """The device that an option names; `auto` takes a GPU where there is one."""
    import torch

    from robustres.errors import InputError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r} asks for a GPU and none is usable here; use --device cpu")
    return name
