"""SuperDeepFool (Abdollahpoorrostam et al. 2023): DeepFool, turned to the boundary's normal.

The nearest example to an image lies in the direction of the boundary's normal at that example; DeepFool's example in
general does not. So each time DeepFool has crossed the boundary, its displacement is projected onto the gradient at
that point, and DeepFool continues from there until a projected point itself lies across the boundary: SDF(infinity, 1)
of the paper.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry.ball import copy_rows, per_sample
from robustres.attacks.geometry.hyperplane import nearest_on_hyperplane
from robustres.attacks.methods.deepfool import BoundaryWalk, DeepFool
from robustres.attacks.search.engine import Slots
from robustres.threat import Norm


class _SuperDeepFool(BoundaryWalk):
    """DeepFool continues from the projection of each point across the boundary; the nearest such point counts."""

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        slots["projected"] = torch.zeros_like(slots["sample"], dtype=torch.bool)  # whether the points are projections

    def move(self, slots: Slots, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        arrived = slots["projected"] & torch.isfinite(slots["away"])
        over = super().move(slots, logits, loss, gradient) | arrived
        back = (arrived & torch.isfinite(slots["best_distance"])).nonzero().flatten()
        copy_rows(slots["points"], slots["best"], back)
        return over

    def next_points(self, slots: Slots, hit: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        points, x = slots["points"], slots["x"]
        onwards = points + (1 + self.overshoot) * nearest_on_hyperplane(points, gradient, -loss, "l2")
        rise = torch.linalg.vecdot(gradient.flatten(1), (points - x).flatten(1))
        square = gradient.flatten(1).square().sum(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
        along = torch.addcmul(x, gradient, per_sample((1 + self.overshoot) * rise / square, x))
        slots["projected"] = hit & ~slots["projected"]
        return torch.where(per_sample(hit, x), along, onwards).clamp_(0, 1)


@dataclass(frozen=True)
class SuperDeepFool(DeepFool):
    """Step onto the linearised boundary, project the displacement onto the normal, and repeat until both agree; l2.

    One search per class, for the `targets` most likely wrong classes (or towards the caller's target alone). With eps =
    math.inf the nearest example found is returned; with a finite eps only one inside the ball counts.

    steps: gradients per class. overshoot: how far a step goes beyond the boundary, relative to its length.
    """

    kind: ClassVar[str] = "superdeepfool"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)

    def _walk(self, problem: Problem, targets: Tensor) -> BoundaryWalk:
        return _SuperDeepFool(problem, self, targets)
