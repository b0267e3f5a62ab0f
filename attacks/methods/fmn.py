"""Fast minimum-norm attack (Pintor et al. 2021) for l2, linf and l1."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry import ball
from robustres.attacks.geometry.ball import per_sample
from robustres.attacks.search import engine
from robustres.attacks.search.engine import Slots
from robustres.attacks.search.half_cosine import half_cosine
from robustres.attacks.search.minimum_norm import MinimumNormSearch

DUAL = {"l2": 2.0, "linf": 1.0, "l1": math.inf}


class _Fmn(MinimumNormSearch):
    def __init__(self, problem: Problem, settings: "FMN") -> None:
        super().__init__(problem, steps=settings.steps)
        self.settings = settings

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        slots["radius"] = torch.full_like(slots["best_distance"], torch.inf)

    def next_points(self, slots: Slots, hit: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        x, norm = slots["x"], self.problem.threat.norm
        fall = half_cosine(slots["age"].to(x.dtype), self.steps)
        gamma = 0.001 + (self.settings.gamma - 0.001) * fall
        slope = torch.linalg.vector_norm(gradient.flatten(1), ord=DUAL[norm], dim=1).clamp(min=1e-12)
        away = self.lengths(slots["points"] - x)
        estimated = away + loss.abs() / slope  # distance to the boundary if the loss were linear
        wider = slots["radius"] * (1 + gamma)
        searching = torch.where(torch.isfinite(wider), torch.maximum(wider, estimated), estimated)
        grown = torch.where(torch.isfinite(slots["best_distance"]), wider, searching)
        shrunk = torch.minimum(slots["radius"] * (1 - gamma), slots["best_distance"] * (1 - gamma))
        slots["radius"] = torch.where(hit, shrunk, grown)
        step = self.settings.step_size * (0.01 + 0.99 * fall)
        direction = ball.unit_direction(gradient, slots["points"], "l2")
        moved = slots["points"] + direction * per_sample(step, x)
        return _into_radius(moved, x, slots["radius"], norm)


def _into_radius(points: Tensor, x: Tensor, radius: Tensor, norm: str) -> Tensor:
    """Points inside the ball of each sample's own radius and inside the box."""
    difference = points - x
    bound = per_sample(radius, x)
    if norm == "linf":
        inside = torch.minimum(torch.maximum(difference, -bound), bound)
    elif norm == "l2":
        length = torch.linalg.vector_norm(difference.flatten(1), dim=1).clamp(min=1e-12)
        inside = difference * per_sample((radius / length).clamp(max=1.0), x)
    else:
        inside = ball.project_l1_box(difference, x, radius)
    return (x + inside).clamp_(0, 1)


@dataclass(frozen=True)
class FMN(Attack):
    """Gradient steps on the margin, projected onto a ball that tightens around the nearest example found.

    With eps = math.inf the nearest example found is returned; with a finite eps only one inside the ball counts.

    steps: gradients per sample. step_size: l2 length of the first step. gamma: first relative change of the radius.
    """

    kind: ClassVar[str] = "fmn"
    minimum_norm: ClassVar[bool] = True

    _: KW_ONLY
    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("steps")

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        engine.run(problem, _Fmn(problem, self), ledger=ledger, restarts=1, batch_size=self.batch_size)
