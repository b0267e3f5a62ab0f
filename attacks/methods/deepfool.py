"""DeepFool (Moosavi-Dezfooli, Fawzi and Frossard 2016): steps onto the nearest linearised class boundary."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry.ball import per_sample
from robustres.attacks.geometry.hyperplane import nearest_on_hyperplane
from robustres.attacks.search import engine
from robustres.attacks.search.engine import Slots
from robustres.attacks.search.minimum_norm import MinimumNormSearch
from robustres.attacks.search.targets import TowardsTargets, aims


class BoundaryWalk(TowardsTargets, MinimumNormSearch):
    """Restart r moves to the boundary with the r-th of the targets (N, T)."""

    def __init__(self, problem: Problem, settings: "DeepFool", targets: Tensor) -> None:
        super().__init__(problem, steps=settings.steps, stops_inside=True)
        self.targets, self.overshoot = targets, settings.overshoot

    def loss(self, logits: Tensor, slots: Slots) -> Tensor:
        return self.lead(logits, slots)


class _DeepFool(BoundaryWalk):
    """A search ends where it crosses the boundary; the nearest end point counts."""

    def move(self, slots: Slots, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        return super().move(slots, logits, loss, gradient) | torch.isfinite(slots["best_distance"])

    def next_points(self, slots: Slots, hit: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        move = nearest_on_hyperplane(slots["points"], gradient, -loss, self.problem.threat.norm)
        onwards = (slots["points"] + (1 + self.overshoot) * move).clamp(0, 1)
        return torch.where(per_sample(hit, onwards), slots["points"], onwards)


@dataclass(frozen=True)
class DeepFool(Attack):
    """Linearise and step onto the boundary with some overshoot until the answer changes; a fast, rough estimate.

    One search per class, for the `targets` most likely wrong classes (or towards the caller's target alone), by exact
    moves within [0, 1] in the threat's norm. With eps = math.inf the nearest end point is returned; with a finite eps
    only one inside the ball counts.

    steps: linearisations per class. overshoot: how far a step goes beyond the boundary, relative to its length.
    """

    kind: ClassVar[str] = "deepfool"
    minimum_norm: ClassVar[bool] = True

    _: KW_ONLY
    steps: int = 20
    targets: int = 9
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("steps", "targets")

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        search = self._walk(problem, aims(problem, clean, self.targets))
        engine.run(problem, search, ledger=ledger, restarts=search.targets.shape[1], batch_size=self.batch_size)

    def _walk(self, problem: Problem, targets: Tensor) -> BoundaryWalk:
        return _DeepFool(problem, self, targets)
