"""Everything that determines a training run, in one frozen description that can be written as TOML."""

import math
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from robustres.errors import InputError
from robustres.threat import Norm, ThreatModel

LossName = Literal["clean", "adversarial", "trades", "emma", "gloro", "offset", "annealing"]
LOSSES: tuple[LossName, ...] = get_args(LossName)
CERTIFIED_LOSSES = frozenset({"emma", "gloro", "offset", "annealing"})
OptimiserName = Literal["nadam", "adamw", "manifold"]
BoundName = Literal["blocks", "whole"]
KeepName = Literal["best", "last"]
AugmentationName = Literal["none", "shift", "shift-flip", "jitter"]


@dataclass(frozen=True)
class Recipe:
    """Settings of `train`; a run is determined by the recipe, the model's start and the data.

    loss: "clean" cross-entropy; "adversarial" (cross-entropy on PGD examples) or "trades"; or a certified margin loss,
        "emma", "gloro", "offset" or "annealing", see robustres.training.losses.
    eps: radius in pixel units: of the inner attack (in `norm`), or the l2 radius for which the margin losses demand a
        margin and at which certified accuracy is evaluated. It is reached linearly over the share `eps_warmup` of all
        steps.
    attack_steps: of the inner attack. trades_beta: weight of the TRADES term.
    temperature: factor on the logits inside the margin losses' cross-entropy. annealing: power of (1 - p_label) in
        the loss "annealing". lipschitz_weight: of log L in the loss, L as `bound` says, for ordinary networks.
    bound: the estimate L of the Lipschitz constant in margin losses: "blocks", the product of the blocks' norms before
        the head, for networks of this package; or "whole", of all layers at once, for any network of linear layers,
        activations and sorts.
    budget: the eps for which a margin loss demands a margin, if it differs from the evaluated `eps`; 0 means `eps`.
    optimiser: "nadam", "adamw", or "manifold": orthogonal matrices are optimised on their manifold by Adam with
        `manifold_learning_rate`, everything else by NAdam; biases with `bias_learning_rate` (0: as the rest).
    learning_rate: the peak, after a linear warm-up over `warmup` (share of all steps) and before a cosine decay to 0.
    ema: decay per step of the averaged weights that are validated and kept; 0 keeps the weights themselves.
    augmentation: "shift" moves images by up to `shift` pixels, "shift-flip" also mirrors them; "jitter" turns,
        stretches, shears and moves them by a little: `jitter` times 15 degrees, a tenth, a fifth, and one pixel.
    clip_norm: largest gradient norm; infinite switches it off. patience: epochs without improvement on the
        validation split before the run stops early; 0 never stops.
    keep: the "best" epoch on the validation split, or the "last": where that split is so small that the best of many
        epochs is a matter of luck.
    mixed_precision: the forward pass of training in bfloat16 where autocast allows, and the steps on the manifold; on
        processors without such products everything stays in float32. Never used for certifying.
    layer_budget: the largest operator norm of every layer of an ordinary network, maintained by `enforce` during
        training; 0 leaves the layers free.
    """

    loss: LossName = "clean"
    eps: float = 0.5
    norm: Norm = "l2"
    budget: float = 0.0
    eps_warmup: float = 0.5
    bound: BoundName = "blocks"
    attack_steps: int = 7
    trades_beta: float = 6.0
    temperature: float = 1.0
    annealing: float = 2.0
    lipschitz_weight: float = 0.0
    epochs: int = 20
    batch_size: int = 64
    optimiser: OptimiserName = "nadam"
    learning_rate: float = 5e-3
    manifold_learning_rate: float = 7e-3
    bias_learning_rate: float = 0.0
    weight_decay: float = 0.0
    warmup: float = 0.1
    ema: float = 0.0
    augmentation: AugmentationName = "none"
    shift: int = 1
    jitter: float = 0.25
    clip_norm: float = math.inf
    patience: int = 0
    keep: KeepName = "best"
    mixed_precision: bool = False
    layer_budget: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("loss", LOSSES),
            ("optimiser", get_args(OptimiserName)),
            ("augmentation", get_args(AugmentationName)),
            ("bound", get_args(BoundName)),
            ("keep", get_args(KeepName)),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        ThreatModel(self.norm, self.eps)
        for name, least in (("epochs", 1), ("batch_size", 1), ("attack_steps", 1), ("shift", 0), ("patience", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least}, got {value}")
        for name in ("learning_rate", "manifold_learning_rate", "temperature", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name):g}")
        free = ("weight_decay", "trades_beta", "annealing", "lipschitz_weight")
        for name in (*free, "budget", "bias_learning_rate", "layer_budget", "jitter"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name} must not be negative, got {getattr(self, name):g}")
        for name in ("warmup", "ema", "eps_warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must lie in [0, 1), got {getattr(self, name):g}")
        if self.keep == "last" and self.patience:
            raise InputError(f"patience waits for a best epoch; set it to 0 to keep the last, got {self.patience}")
        if self.certified and self.norm != "l2":
            raise InputError(f"the margin loss {self.loss!r} is about l2, got norm {self.norm!r}")

    @property
    def certified(self) -> bool:
        """Whether the loss uses certified margins, so that certified accuracy is evaluated."""
        return self.loss in CERTIFIED_LOSSES

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """A recipe from plain values; InputError names unknown settings and wrong kinds."""
        kinds = {field.name: type(field.default) for field in fields(cls)}
        if unknown := sorted(values.keys() - kinds.keys()):
            raise InputError(f"a recipe has no setting {', '.join(unknown)}; known are {', '.join(kinds)}")
        converted: dict[str, Any] = {}
        for name, value in values.items():
            kind = kinds[name]
            fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
            if not fits or (kind is not bool and isinstance(value, bool)):
                raise InputError(f"the setting {name} must be a {kind.__name__}, got {value!r}")
            converted[name] = float(value) if kind is float else value
        return cls(**converted)

    @classmethod
    def from_toml(cls, path: str | Path) -> "Recipe":
        """A recipe from a TOML file whose keys are the fields of this class, also under a table [recipe]."""
        try:
            values = tomllib.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"cannot read the recipe {path} ({error})") from error
        return cls.from_dict(values.get("recipe", values))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
