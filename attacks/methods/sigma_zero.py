"""Sigma-zero (Cinà et al. 2025): the example with the fewest changed channel values, found by gradients.

The number of changed values has no useful gradient; the smooth sum d_i^2 / (d_i^2 + sigma), which approaches it as
sigma tends to 0, does. The attack descends the hinge loss of the margin plus this sum divided by the number of values,
along gradients scaled to a largest entry of 1, with step lengths that fall along a cosine; after each step, changes
below a threshold are undone. The threshold rises while the model is fooled and falls otherwise.
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry.ball import per_sample
from robustres.attacks.search import engine
from robustres.attacks.search.engine import Slots
from robustres.attacks.search.half_cosine import half_cosine
from robustres.attacks.search.minimum_norm import MinimumNormSearch
from robustres.errors import InputError
from robustres.threat import Norm

LAST_STEP = 0.1  # final step length, as a share of the first


class _SigmaZero(MinimumNormSearch):
    def __init__(self, problem: Problem, settings: "SigmaZero") -> None:
        super().__init__(problem, steps=settings.steps, stops_inside=True)
        self.settings = settings

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        slots["threshold"] = torch.full_like(slots["best_distance"], self.settings.threshold)

    def next_points(self, slots: Slots, hit: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        x, settings = slots["x"], self.settings
        fall = half_cosine(slots["age"].to(x.dtype), self.steps)
        step = settings.step_size * (LAST_STEP + (1 - LAST_STEP) * fall)
        delta = slots["points"] - x
        squared = delta.square()
        fewer = (2 * settings.sigma / delta[0].numel()) * delta / (squared + settings.sigma).square()
        uphill = torch.where(per_sample(hit, x), 0, gradient) - fewer
        largest = uphill.flatten(1).abs().amax(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
        moved = (slots["points"] + uphill * per_sample(step / largest, x)).clamp_(0, 1)
        change = settings.threshold_step * step
        slots["threshold"] = (slots["threshold"] + torch.where(hit, change, -change)).clamp(0, 1)
        kept = (moved - x).abs() >= per_sample(slots["threshold"], x)
        return torch.where(kept, moved, x)


@dataclass(frozen=True)
class SigmaZero(Attack):
    """Gradient steps on the margin and on a smooth count of the changed values; small changes are undone at each.

    Distances count the channel values that differ. With eps = math.inf the example with the fewest is returned; with a
    finite eps a sample retires once an example with at most eps is found.

    steps: gradients per sample. step_size: largest change of a value in the first step. sigma: square of the smallest
    change that still counts. threshold: initial threshold below which changes are undone; threshold_step: its change
    per step, relative to the step length.
    """

    kind: ClassVar[str] = "sigma-zero"
    minimum_norm: ClassVar[bool] = True
    norms: ClassVar[tuple[Norm, ...]] = ("l0",)

    _: KW_ONLY
    steps: int = 100
    step_size: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    threshold_step: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("steps")
        if not (self.step_size > 0 and self.sigma > 0 and self.threshold_step > 0 and 0 <= self.threshold <= 1):
            raise InputError(
                f"step_size, sigma and threshold_step must be positive and threshold in [0, 1], got {self.step_size}, "
                f"{self.sigma}, {self.threshold_step} and {self.threshold}"
            )

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        engine.run(problem, _SigmaZero(problem, self), ledger=ledger, restarts=1, batch_size=self.batch_size)
