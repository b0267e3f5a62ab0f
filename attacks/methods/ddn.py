"""Decoupled direction and norm (Rony et al. 2019): the nearest example in l2 with few gradients.

Two changes to the published attack, each measured to find nearer examples with the same number of gradients: the
relative change of the radius falls along a cosine as the step length does, and the logits are scaled to a given spread
before the cross-entropy, which makes the attack invariant to the scale of the model's logits.
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry import ball, losses
from robustres.attacks.geometry.ball import per_sample
from robustres.attacks.search import engine
from robustres.attacks.search.engine import Slots
from robustres.attacks.search.half_cosine import half_cosine
from robustres.attacks.search.minimum_norm import MinimumNormSearch
from robustres.errors import InputError
from robustres.threat import Norm

LAST_STEP, LAST_GAMMA = 0.01, 0.01  # final step length and final relative change of the radius


class _Ddn(MinimumNormSearch):
    def __init__(self, problem: Problem, settings: "DDN", clean: Tensor) -> None:
        super().__init__(problem, steps=settings.steps)
        self.settings = settings
        spread = clean.nan_to_num().std(dim=1)
        self.sharpening = settings.sharpness / spread.clamp(min=torch.finfo(clean.dtype).tiny)

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        slots["radius"] = torch.full_like(slots["best_distance"], self.settings.first_radius)

    def loss(self, logits: Tensor, slots: Slots) -> Tensor:
        scale = self.sharpening[slots["sample"], None]
        value = losses.cross_entropy(logits * scale, slots["classes"])
        return -value if self.problem.targeted else value

    def next_points(self, slots: Slots, hit: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        x = slots["x"]
        fall = half_cosine(slots["age"].to(x.dtype), self.steps)
        step = LAST_STEP + (1 - LAST_STEP) * fall
        gamma = LAST_GAMMA + (self.settings.gamma - LAST_GAMMA) * fall
        direction = ball.unit_direction(gradient, slots["points"], "l2")
        moved = slots["points"] - x + direction * per_sample(step, x)
        change = torch.where(hit, 1 - gamma, 1 + gamma)
        slots["radius"] = torch.minimum(slots["radius"] * change, slots["best_distance"])
        length = self.lengths(moved).clamp(min=1e-12)
        return (x + moved * per_sample(slots["radius"] / length, x)).clamp_(0, 1)


@dataclass(frozen=True)
class DDN(Attack):
    """Steps of decreasing length on a sphere whose radius shrinks while the model is fooled and grows otherwise.

    With eps = math.inf the nearest example found is returned; with a finite eps only one inside the ball counts.

    steps: gradients per sample. first_radius: of the sphere, in pixel units. gamma: its first relative change per
    step. sharpness: the spread (standard deviation) to which each sample's clean logits are scaled in the loss.
    """

    kind: ClassVar[str] = "ddn"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    minimum_norm: ClassVar[bool] = True

    _: KW_ONLY
    steps: int = 100
    first_radius: float = 1.0
    gamma: float = 0.2
    sharpness: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("steps")
        if not (self.first_radius > 0 and self.sharpness > 0 and 0 < self.gamma < 1):
            raise InputError(
                f"first_radius and sharpness must be positive and gamma in (0, 1), "
                f"got {self.first_radius}, {self.sharpness} and {self.gamma}"
            )

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        engine.run(problem, _Ddn(problem, self, clean), ledger=ledger, restarts=1, batch_size=self.batch_size)
