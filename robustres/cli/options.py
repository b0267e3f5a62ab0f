"""Options shared by several commands, each declared once, and their conversion to settings."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer

from robustres.cli import console
from robustres.cli.settings_file import take_settings
from robustres.cli.values import attack_setting, labels_in_words, parse_shape, smoothing, statistics, thoroughness

if TYPE_CHECKING:
    from robustres.data import ImageSet
    from robustres.models import LoadedModel

Model = Annotated[
    str,
    typer.Argument(
        help="FILE.safetensors | FILE.onnx | FILE.pt2 | FILE.pt | torchvision:NAME | timm:NAME | hf:ORG/NAME | "
        "hf:FOLDER | robustbench:DATASET/THREAT/NAME | package.module:factory; names also with @WEIGHTS"
    ),
]
DATA_FORMS = "digits | mnist | cifar10 | folder:DIR (a directory per class) | npy:DIR | npz:FILE | hf-disk:DIR"
Data = Annotated[str, typer.Option("--data", help=DATA_FORMS)]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder in torchvision's layout (for mnist, cifar10 and the like).")
]
Split = Annotated[str, typer.Option("--split", help="train | validation | test")]
Download = Annotated[
    bool,
    typer.Option(
        "--download", help="Download published data and weights that are missing; nothing is downloaded without it."
    ),
]
NormOption = Annotated[str, typer.Option("--norm", help="l2 | linf; attacks also l1 | l0")]
Eps = Annotated[str | None, typer.Option("--eps", help="Budgets in pixel units on [0, 1]: 1/255,2/255,8/255")]
AttackNames = Annotated[
    str | None,
    typer.Option(
        "--attacks",
        help="Comma-separated names, or package.module:name of your own; default: strong. Within eps: strong, fgsm, "
        "pgd, apgd, apgd-t, square, ensemble. The nearest example: ldn (l2, linf, l1), sigma-zero (l0), fab, deepfool, "
        "fmn, ddn, superdeepfool (l2), hopskipjump (by decisions alone). Besides, torchattacks:NAME. Average case: "
        "gaussian-noise, low-contrast, jpeg (see --corruptions).",
    ),
]
Corruptions = Annotated[
    bool,
    typer.Option(
        "--corruptions", help="Also count what random corruptions of the same size leave: the average case, no attack."
    ),
]
Fast = Annotated[bool, typer.Option("--fast", help="FGSM and PGD instead of strong: quicker, and fooled less often.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Steps of PGD, 20 by default.")]
AttackSetting = Annotated[
    list[str] | None,
    typer.Option("--attack-setting", help="ATTACK.SETTING=VALUE such as apgd.steps=200; repeatable."),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        help="TOML file of options by name, with tables such as [attack-setting.apgd]; options on "
        "the command line take precedence.",
        is_eager=True,
        callback=take_settings,
    ),
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        "--require",
        help="WHAT@NORM:EPS>=SHARE with certified, robust or an attack's name, or clean>=SHARE, such as "
        "certified@l2:36/255>=0.5; exit code 1 if it fails; repeatable.",
    ),
]
InputShape = Annotated[
    str | None, typer.Option("--input-shape", help="Channels, height, width: 3,32,32; needed without --data.")
]
Mean = Annotated[str | None, typer.Option("--mean", help="Normalisation that the network expects, per channel.")]
Std = Annotated[str | None, typer.Option("--std", help="Standard deviations, per channel; with --mean.")]
Joint = Annotated[bool, typer.Option("--joint/--textbook", help="Bound blocks jointly (tighter) or by 1 + K_F alone.")]
Effort = Annotated[
    float | None, typer.Option("--effort", help="Effort for each joint bound, in seconds of a nominal core.")
]
WholeEffort = Annotated[
    float | None,
    typer.Option("--whole-effort", help="Effort for the bound on all layers at once, in seconds of a nominal core."),
]
Domain = Annotated[
    str,
    typer.Option(help="all inputs, or unit: images in [0, 1] only, where products of two values also have a bound."),
]
SecondsPerImage = Annotated[
    float | None,
    typer.Option(
        "--seconds-per-image", help="Time limit of the local bounds around each image, in seconds of one core."
    ),
]
AimAtEps = Annotated[
    bool,
    typer.Option("--aim-at-eps", help="Local bounds only try to prove the given eps, not larger radii."),
]
KeepCertificates = Annotated[
    bool,
    typer.Option(
        "--keep-certificates", help="Keep the local certificates, one file for each image and norm; see recheck."
    ),
]
Certificate = Annotated[
    str,
    typer.Option(
        "--certificate",
        help="lipschitz (product of the pieces' bounds) | local (bounds around each image) | best (largest of all "
        "deterministic radii; with --seconds-per-image including local ones) | package.module:name for "
        "your own; comma-separated.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", help="float64 | float32: the arithmetic whose rounding errors are subtracted from the margins."
    ),
]
Smoothing = Annotated[
    float | None,
    typer.Option(
        "--smoothing",
        help="Also certify the classifier smoothed by Gaussian noise of this standard deviation (l2, probabilistic).",
    ),
]
SmoothingSamples = Annotated[int, typer.Option("--smoothing-samples", min=1, help="Noisy images per sample.")]
Diagnose = Annotated[
    int,
    typer.Option(
        "--diagnose", min=0, help="Check for gradient masking with PGD on N samples (costs as much as ten PGD runs)."
    ),
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first N samples.")]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Samples per forward pass; default 512, fewer for large images."),
]
Device = Annotated[str, typer.Option("--device", help="auto | cpu | cuda | cuda:N")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of all random numbers.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/MODEL-DATA.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over if --out already holds a run.")]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Reuse bounds computed for exactly the same network.")]
KeepGoing = Annotated[bool, typer.Option("--keep-going", help="Report samples with non-finite logits and continue.")]
SaveExamples = Annotated[bool, typer.Option("--save-examples", help="Store every adversarial example; see replay.")]
SaveNpz = Annotated[
    bool, typer.Option("--save-npz", help="The same, and also store them in RUN/adversarial.npz for NumPy.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON to standard output and nothing else.")]


Classes = Annotated[
    Path | None,
    typer.Option(
        "--classes", help="For folder:DIR: a file with the folder names in the order of the network's outputs."
    ),
]


@dataclass(frozen=True)
class Reading:
    """Which samples of DATA."""

    split: Split = "test"
    limit: Limit = None
    data_root: DataRoot = None
    download: Download = False
    classes: Classes = None

    def images(self, data: str) -> "ImageSet":
        """The samples selected by the options."""
        from robustres.data import load_data

        images = load_data(
            data, root=self.data_root, split=cast(Any, self.split), limit=self.limit, download=self.download,
            classes=self.classes,
        )  # fmt: skip
        if data.startswith("folder:"):
            console.notes.print(f"labels of the folders: {labels_in_words(images)}", markup=False, highlight=False)
        return images


@dataclass(frozen=True)
class Source(Reading):
    """Which samples, and how the network expects them."""

    mean: Mean = None
    std: Std = None

    def network(self, model: str, shape: tuple[int, ...]) -> "LoadedModel":
        """The model for images of shape (C, H, W)."""
        from robustres.models import load_model

        return load_model(model, input_shape=shape, download=self.download, **statistics(self.mean, self.std))

    def load(self, model: str, data: str) -> "tuple[LoadedModel, ImageSet]":
        """The model and the data given to the command."""
        images = self.images(data)
        return self.network(model, images.image_shape), images

    def load_with_shape(
        self, model: str, data: str | None, input_shape: str | None
    ) -> "tuple[LoadedModel, tuple[int, ...], ImageSet | None]":
        """The model, the shape (C, H, W) of its images, and the images if the command was given data."""
        from robustres.errors import InputError

        if data is None and input_shape is None:
            raise InputError("give --data DATA, or --input-shape such as 3,32,32 to start from random images")
        images = None if data is None else self.images(data)
        shape = images.image_shape if images is not None and input_shape is None else parse_shape(input_shape or "")
        return self.network(model, shape), shape, images


@dataclass(frozen=True)
class Attacking:
    """How to attack."""

    attacks: AttackNames = None
    fast: Fast = False
    steps: Steps = None
    attack_setting: AttackSetting = None
    corruptions: Corruptions = False
    diagnose: Diagnose = 0
    save_examples: SaveExamples = False
    save_npz: SaveNpz = False

    def settings(self) -> dict[str, Any]:
        """As arguments of `Settings`."""
        from robustres.errors import InputError
        from robustres.results import AVERAGE_CASE

        names = self._names()
        names += tuple(name for name in AVERAGE_CASE if self.corruptions and name not in names)
        settings: dict[str, dict[str, Any]] = {}
        if self.steps is not None:
            if "pgd" not in names and not self.diagnose:
                raise InputError(
                    f"--steps is of pgd, which is not among the attacks ({', '.join(names)}); add --fast or "
                    "--attacks pgd"
                )
            settings["pgd"] = {"steps": self.steps}
        for text in self.attack_setting or ():
            attack, name, value = attack_setting(text)
            settings.setdefault(attack, {})[name] = value
        return {
            "attacks": names,
            "attack_settings": settings,
            "diagnose": self.diagnose,
            "save_examples": self.save_examples or self.save_npz,
        }

    def _names(self) -> tuple[str, ...]:
        from robustres.errors import InputError
        from robustres.evaluation.settings import DEFAULT_ATTACKS, FAST_ATTACKS

        if self.attacks is None:
            return FAST_ATTACKS if self.fast else DEFAULT_ATTACKS
        if self.fast:
            raise InputError(f"--fast stands for --attacks {','.join(FAST_ATTACKS)}; give one of the two options")
        return tuple(self.attacks.split(","))


@dataclass(frozen=True)
class Bounding:
    """How to certify."""

    joint: Joint = True
    effort: Effort = None
    whole_effort: WholeEffort = None
    domain: Domain = "all"
    seconds_per_image: SecondsPerImage = None
    aim_at_eps: AimAtEps = False
    keep_certificates: KeepCertificates = False
    certificate: Certificate = "lipschitz"
    dtype: Dtype = "float64"
    smoothing: Smoothing = None
    smoothing_samples: SmoothingSamples = 10_000
    cache: Cache = True

    def settings(self, seed: int) -> dict[str, Any]:
        """As arguments of `Settings`."""
        return {
            **thoroughness(self.joint, self.effort),
            "whole_effort": self.whole_effort,
            "domain": self.domain,
            "certificate": tuple(self.certificate.split(",")) if "," in self.certificate else self.certificate,
            "seconds_per_image": self.seconds_per_image,
            "aim_at_eps": self.aim_at_eps,
            "keep_certificates": self.keep_certificates,
            "dtype": self.dtype,
            "smoothing": smoothing(self.smoothing, self.smoothing_samples, seed),
        }


@dataclass(frozen=True)
class Running:
    """Where and how to run, and what to print."""

    batch_size: BatchSize = None
    device: Device = "auto"
    seed: Seed = 0
    out: Out = None
    overwrite: Overwrite = False
    keep_going: KeepGoing = False
    require: Require = None
    settings_file: SettingsFile = None
    json: Json = False

    def settings(self) -> dict[str, Any]:
        """As arguments of `Settings`."""
        return {"batch_size": self.batch_size, "seed": self.seed, "keep_going": self.keep_going}


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every group of options among its parameters replaced by the options of the group.

    Typer reads options from a function's signature; this function builds that signature so that several commands can
    share a group of options.
    """
    groups: dict[str, type] = {}
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        group = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            groups[parameter.name] = group
            hints = get_type_hints(group, include_extras=True)
            parameters += [
                Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
                for field in fields(group)
            ]
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))

    @wraps(command)
    def flat(**given: Any) -> None:
        built = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        try:
            command(**given, **built)
        except KeyboardInterrupt:
            console.notes.print("interrupted; give the same command again to start over")
            raise typer.Exit(130) from None

    flat.__dict__["__signature__"] = Signature(parameters)
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat
