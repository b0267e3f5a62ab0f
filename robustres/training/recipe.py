"""Everything that decides a training run, in one frozen description."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from robustres.errors import InputError

LossName = Literal["clean", "emma", "gloro"]
LOSSES: tuple[LossName, ...] = get_args(LossName)


@dataclass(frozen=True)
class Recipe:
    """Settings of `train`; a run is determined by the recipe, the model's start and the data.

    loss: "clean" cross-entropy, or a certified margin loss ("emma", "gloro") for a non-expansive network.
    eps: l2 radius in pixel units that the margin losses ask for, and at which certified accuracy is counted; reached
        linearly over the first half of training.
    learning_rate: the largest, after a linear warm-up over `warmup` (share of all steps) and before a cosine to 0.
    temperature: factor on the logits inside the cross-entropy.
    """

    loss: LossName = "clean"
    eps: float = 0.5
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    warmup: float = 0.1
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("eps", "learning_rate", "temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be positive, got {value:g}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is a share of all steps in [0, 1), got {self.warmup:g}")
