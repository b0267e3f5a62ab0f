"""Options that several commands share, each declared once, and what they mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from robustres.certify import RandomisedSmoothing
    from robustres.certify.routes import Choice
    from robustres.threat import Norm

Model = Annotated[str, typer.Argument(help="checkpoint.safetensors | package.module:factory | FILE.onnx")]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="digits | mnist | cifar10 | folder:DIR (a directory per class) | npy:DIR | npz:FILE | hf-disk:DIR",
    ),
]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Where torchvision's layout lies (mnist, cifar10 and the like).")
]
NormOption = Annotated[str, typer.Option("--norm", help="l2 | linf")]
Eps = Annotated[str | None, typer.Option("--eps", help="Budgets in pixel units on [0, 1]: 1/255,2/255,8/255")]
Mean = Annotated[str | None, typer.Option("--mean", help="Normalisation that the network expects, per channel.")]
Std = Annotated[str | None, typer.Option("--std", help="Standard deviations, per channel; with --mean.")]
Joint = Annotated[bool, typer.Option("--joint/--textbook", help="Bound blocks jointly (tighter) or by 1 + K_F alone.")]
Effort = Annotated[
    float | None, typer.Option("--effort", help="Cost of each joint bound, in seconds of a nominal core.")
]
Certificate = Annotated[
    str,
    typer.Option(
        "--certificate", help="lipschitz (product of the pieces' bounds) | best (largest of all deterministic radii)."
    ),
]
Smoothing = Annotated[
    float | None,
    typer.Option(
        "--smoothing", help="Also certify the classifier smoothed by noise of this deviation (l2, probabilistic)."
    ),
]
SmoothingSamples = Annotated[int, typer.Option("--smoothing-samples", min=1, help="Noisy images per sample.")]
Diagnose = Annotated[
    int, typer.Option("--diagnose", min=0, help="Check PGD for masked gradients on so many samples (costs ten PGDs).")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many samples.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Samples per forward pass.")]
Device = Annotated[str, typer.Option("--device", help="auto | cpu | cuda | cuda:N")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random number.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/MODEL-DATA.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Begin again where --out holds a run.")]
Cache = Annotated[
    bool, typer.Option("--cache/--no-cache", help="Use bounds again that were computed for the very same network.")
]
KeepGoing = Annotated[bool, typer.Option("--keep-going", help="Report samples with non-finite logits and go on.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON to standard output and nothing else.")]


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


def budgets(norm: str, eps: str | None) -> "dict[Norm, tuple[float, ...]]":
    """The eps to use in a norm: those given, or the conventional ones."""
    from robustres.errors import InputError
    from robustres.evaluation import CONVENTIONAL_EPS
    from robustres.threat import parse_numbers

    known = next((name for name in CONVENTIONAL_EPS if name == norm), None)
    if known is None:
        raise InputError(f"--norm must be one of {', '.join(CONVENTIONAL_EPS)}, got {norm!r}")
    return {known: CONVENTIONAL_EPS[known] if eps is None else parse_numbers(eps)}


def thoroughness(joint: bool, effort: float | None) -> dict[str, Any]:
    """How thoroughly to bound, as `Settings` and `lipschitz` take it."""
    return {"joint": joint} if effort is None else {"joint": joint, "effort": effort}


def certificate(name: str) -> "Choice":
    """The certificate of the network that the option names."""
    from typing import get_args

    from robustres.certify.routes import Choice
    from robustres.errors import InputError

    known: Choice | None = next((choice for choice in get_args(Choice) if choice == name), None)
    if known is None:
        raise InputError(f"--certificate must be {' or '.join(get_args(Choice))}, got {name!r}")
    return known


def smoothing(sigma: float | None, samples: int, seed: int) -> "RandomisedSmoothing | None":
    """The smoothing that the options ask for."""
    from robustres.certify import RandomisedSmoothing

    return None if sigma is None else RandomisedSmoothing(sigma, estimation_samples=samples, seed=seed)


def number(text: str | None) -> float | None:
    """A number that may be a fraction, where one was given."""
    from robustres.threat import parse_number

    return None if text is None else parse_number(text)


def statistics(mean: str | None, std: str | None) -> dict[str, Any]:
    """The normalisation that was given, as `load_model` takes it."""
    from robustres.threat import parse_numbers

    return {name: parse_numbers(text) for name, text in (("mean", mean), ("std", std)) if text is not None}
