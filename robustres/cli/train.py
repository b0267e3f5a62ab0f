"""`robustres train`: train a network with a recipe and write a checkpoint."""

import math
import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustres.cli import console, options, values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from robustres.data import ImageSet
    from robustres.training import Epoch, History, Plan

Network = Annotated[
    str | None,
    typer.Argument(
        help="A preset, such as constrained-tiny (an unknown name lists them all), or a model, as for `evaluate`. "
        "Default: the [architecture] of the recipe file."
    ),
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="TOML file of settings; options on the command line take precedence.")
]
Loss = Annotated[
    str | None,
    typer.Option("--loss", help="clean | adversarial | trades | emma | gloro | offset | annealing (the last four: l2)"),
]
Eps = Annotated[str | None, typer.Option("--eps", help="Radius of the attack or the margin, in pixel units: 36/255")]
Norm = Annotated[str | None, typer.Option("--norm", help="l2 | linf, for adversarial and trades.")]
EpsWarmup = Annotated[
    float | None, typer.Option("--eps-warmup", help="Share of all steps over which eps grows to its full value.")
]
AttackSteps = Annotated[int | None, typer.Option("--attack-steps", min=1, help="Steps of the attack inside training.")]
TradesBeta = Annotated[float | None, typer.Option("--trades-beta", help="Weight of the TRADES term.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the training split.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Images per step, summed over all processes.")
]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", help="Peak learning rate, between warm-up and cosine decay.")
]
Warmup = Annotated[
    float | None, typer.Option("--warmup", help="Share of all steps over which the learning rate grows.")
]
Optimiser = Annotated[str | None, typer.Option("--optimiser", help="nadam | adamw | manifold")]
WeightDecay = Annotated[float | None, typer.Option("--weight-decay", help="Decoupled weight decay.")]
Ema = Annotated[float | None, typer.Option("--ema", help="Decay of the moving average of the weights, such as 0.99.")]
Augmentation = Annotated[str | None, typer.Option("--augmentation", help="none | shift | shift-flip | jitter")]
Shift = Annotated[int | None, typer.Option("--shift", min=0, help="Largest shift of an image, in pixels.")]
Keep = Annotated[str | None, typer.Option("--keep", help="The epoch to keep: best (on the validation split) | last")]
Jitter = Annotated[float | None, typer.Option("--jitter", min=0, help="Strength of the augmentation jitter.")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="Factor on the logits of the margin losses.")]
Annealing = Annotated[
    float | None, typer.Option("--annealing", help="Power of (1 - probability of the label) in the loss `annealing`.")
]
ClipNorm = Annotated[float | None, typer.Option("--clip-norm", help="Largest norm of a gradient.")]
Bound = Annotated[
    str | None,
    typer.Option(
        "--bound", help="L of margin losses: blocks (product of norms) | whole (all layers at once, any network)."
    ),
]
LipschitzWeight = Annotated[
    float | None, typer.Option("--lipschitz-weight", help="Weight of log L in the loss, for ordinary networks.")
]
Budget = Annotated[
    float | None,
    typer.Option("--budget", min=0, help="eps for which a margin loss demands the margin; 0: the same as --eps."),
]
ManifoldLearningRate = Annotated[
    float | None,
    typer.Option("--manifold-learning-rate", help="Learning rate of orthogonal matrices, for --optimiser manifold."),
]
BiasLearningRate = Annotated[
    float | None, typer.Option("--bias-learning-rate", min=0, help="Learning rate of biases; 0: the same as the rest.")
]
LayerBudget = Annotated[
    float | None,
    typer.Option(
        "--layer-budget", min=0, help="Largest operator norm of every layer of an ordinary network; 0: no limit."
    ),
]
Patience = Annotated[
    int | None,
    typer.Option("--patience", min=0, help="Stop after N epochs without improvement on the validation split."),
]
MixedPrecision = Annotated[
    bool | None,
    typer.Option("--mixed-precision/--full-precision", help="Use bfloat16 where it is safe, in training only."),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random number.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the checkpoint, the recipe and the state to resume from.")]
TrainSplit = Annotated[str, typer.Option("--split", help="Split to train on: train | validation | test")]
ValidationSplit = Annotated[
    str,
    typer.Option(
        "--validation-split",
        help="Split that selects the epoch to keep, as --split, or none: train on the validation split as well.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue after the last complete epoch of the run in --out.")]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Write curves to --out/tensorboard.")]


KEPT = {"best": "best on", "last": "the last; on"}

# What a training leaves in --out, beside the state to resume from.
WRITTEN = ("training.json", "recipe.toml", "model.safetensors", "model.json", "tensorboard")


@dataclass(frozen=True)
class RecipeOptions:
    """The settings of a recipe, None if the option was not given."""

    loss: Loss = None
    eps: Eps = None
    norm: Norm = None
    eps_warmup: EpsWarmup = None
    attack_steps: AttackSteps = None
    trades_beta: TradesBeta = None
    epochs: Epochs = None
    batch_size: BatchSize = None
    learning_rate: LearningRate = None
    warmup: Warmup = None
    bound: Bound = None
    budget: Budget = None
    optimiser: Optimiser = None
    manifold_learning_rate: ManifoldLearningRate = None
    bias_learning_rate: BiasLearningRate = None
    weight_decay: WeightDecay = None
    ema: Ema = None
    augmentation: Augmentation = None
    shift: Shift = None
    jitter: Jitter = None
    temperature: Temperature = None
    annealing: Annealing = None
    clip_norm: ClipNorm = None
    lipschitz_weight: LipschitzWeight = None
    patience: Patience = None
    keep: Keep = None
    layer_budget: LayerBudget = None
    mixed_precision: MixedPrecision = None
    seed: Seed = None

    def given(self) -> dict[str, Any]:
        """The settings that were given, as `plan_of` accepts them."""
        settings = asdict(self) | {"eps": values.number(self.eps)}
        return {name: value for name, value in settings.items() if value is not None}


@dataclass(frozen=True)
class Parts:
    """Which samples to train on and which to select the epoch with."""

    split: TrainSplit = "train"
    validation_split: ValidationSplit = "validation"
    limit: options.Limit = None
    data_root: options.DataRoot = None
    download: options.Download = False
    classes: options.Classes = None

    def load(self, data: str) -> "tuple[ImageSet, ImageSet | None]":
        """The samples to train on and those to select the epoch with."""

        def images(split: str) -> "ImageSet":
            return options.Reading(split, self.limit, self.data_root, self.download, self.classes).images(data)

        train = images(self.split)
        if self.validation_split != "none":
            return train, images(self.validation_split)
        return (train.and_also(images("validation")) if self.split == "train" else train), None


def train(
    data: options.Data,
    settings: RecipeOptions,
    parts: Parts,
    network: Network = None,
    recipe: RecipeFile = None,
    mean: options.Mean = None,
    std: options.Std = None,
    device: options.Device = "auto",
    out: Out = Path("runs/train"),
    resume: Resume = False,
    tensorboard: Tensorboard = False,
    json: options.Json = False,
) -> None:
    """Train NETWORK on the training split of DATA and keep the epoch that is best on the validation split, or the last.

    Without --recipe, a preset uses its own recipe if it has one. Every setting of a recipe is an option here, and a key
    of the TOML file under the same name with _ instead of -; the recipe that was used is written to recipe.toml in
    --out. Ctrl-C and kills lose at most one epoch: see --resume.

    Example: robustres train constrained-tiny --data digits --loss emma --eps 0.9 --epochs 30

    Example: robustres train --recipe recipe.toml --data cifar10 --data-root DIR --out runs/cifar --resume

    Example: robustres train runs/old/model.safetensors --data digits --layer-budget 1 --epochs 5

    Example: OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m robustres train constrained-tiny --data digits
    """
    from robustres.training import plan_of

    plan = plan_of(network, recipe, settings.given())
    _refuse_to_overwrite(out, resume=resume)
    images = parts.load(data)
    model = plan.build(images[0], download=parts.download, **values.statistics(mean, std))
    try:
        history = _run(model, images, plan, out, device=device, log=tensorboard, quiet=json)
    except KeyboardInterrupt:
        again = shlex.join([*console.invocation(), *([] if resume else ["--resume"])])
        console.notes.print(
            f"interrupted; continue after the last complete epoch with: {again}", markup=False, soft_wrap=True
        )
        raise typer.Exit(130) from None
    if int(os.environ.get("RANK", "0")) == 0:
        _finish(model, images, history, plan, out, json=json)


def _refuse_to_overwrite(out: Path, *, resume: bool) -> None:
    from robustres.errors import InputError
    from robustres.results import require_own
    from robustres.training import has_state

    if not has_state(out):
        require_own(out, WRITTEN, marker="training.json", entry="checkpoint")
    elif not resume:
        raise InputError(
            f"{out} already contains a run; add --resume to continue it, or choose another folder with --out"
        )


def _run(
    model: "nn.Module",
    data: "tuple[ImageSet, ImageSet | None]",
    plan: "Plan",
    out: Path,
    *,
    device: str,
    log: bool,
    quiet: bool,
) -> "History":
    """Train and show each epoch."""
    from robustres.training import tensorboard_logger
    from robustres.training import train as run_training

    curves = tensorboard_logger(out / "tensorboard") if log else None
    epochs = plan.recipe.epochs
    with console.progress_bar(quiet=quiet) as progress:

        def show(epoch: "Epoch") -> None:
            progress("train", epoch.epoch, epochs)
            if not quiet:
                console.notes.print(_line(epoch, epochs), highlight=False)
            if curves is not None:
                curves(epoch)

        return run_training(
            model, *data, plan.recipe, device=values.pick_device(device), folder=out, on_epoch=show
        )  # fmt: skip


def _line(epoch: "Epoch", epochs: int) -> str:
    shares = {"correct": epoch.clean, "estimated certified": epoch.certified}
    words = [f", {name} {console.percent(share)}" for name, share in shares.items() if not math.isnan(share)]
    return f"epoch {epoch.epoch}/{epochs}: loss {epoch.loss:.4g}{''.join(words)}"


def _finish(
    model: "nn.Module",
    images: "tuple[ImageSet, ImageSet | None]",
    history: "History",
    plan: "Plan",
    out: Path,
    *,
    json: bool,
) -> None:
    """Write the checkpoint and the recipe, and print which epoch was kept."""
    from robustres.models import save_model
    from robustres.results import json_text, write_atomically
    from robustres.training.bfloat16 import multiplies_bfloat16

    device = next(model.parameters()).device
    written = save_model(model, out, source=plan.source)
    plan.write(out / "recipe.toml")
    best = history.epochs[history.best_epoch - 1]
    facts: dict[str, Any] = {
        "checkpoint": written,
        "epoch": best.epoch,
        **_finite({"clean": best.clean, "certified_estimate": best.certified}),
        "seconds": history.seconds,
        "products": "bfloat16" if plan.recipe.mixed_precision and multiplies_bfloat16(device) else "float32",
        "data": {name: part.facts() for name, part in zip(("train", "validation"), images, strict=True) if part},
        "recipe": _finite(plan.recipe.as_dict()),
        "epochs": [_finite(row) for row in history.rows],
    }
    write_atomically(out / "training.json", json_text(facts).encode())
    if json:
        typer.echo(json_text(facts), nl=False)
        return
    certified = "" if facts["certified_estimate"] is None else (
        f", an estimated {console.percent(best.certified)} within {console.eps_text(plan.recipe.eps)} "
        "(not a certificate; robustres certify computes one)"
    )  # fmt: skip
    found = f" {KEPT[plan.recipe.keep]} the validation split: {console.percent(best.clean)} correct{certified}"
    console.output.print(f"epoch {best.epoch} is{found if images[1] else ' the last; no image was held out'}")
    console.output.print(f"checkpoint: {written}")


def _finite(record: "Mapping[str, Any]") -> dict[str, Any]:
    """Replace NaN and infinity, which JSON lacks, by null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }
