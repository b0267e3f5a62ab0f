"""Fast adaptive boundary attack, targeted form (Croce and Hein 2020, "Minimally distorted adversarial examples").

Each step linearises the boundary between the label and one other class, moves onto the hyperplane both from the
current point and from the image, and takes a weighted mean that is biased towards the image. From an adversarial
point it first goes back towards the image.

One difference to the published loop: the gradient at the point just tested is used for the step that follows, also
after going back, where the published loop runs the model once more for the gradient there; the hyperplane is that of
the tested point. So an iteration costs one gradient instead of a gradient and a forward pass.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks import engine, losses
from robustres.attacks.apgd import check_counts
from robustres.attacks.attack import Attack
from robustres.attacks.ball import per_sample
from robustres.attacks.engine import Search, Slots
from robustres.attacks.hyperplane import nearest_on_hyperplane
from robustres.attacks.ledger import Ledger
from robustres.attacks.problem import Problem
from robustres.attacks.targets import likely_targets, refuse_targeted
from robustres.numerics import distance

ETA, BETA, ALPHA_MAX = 1.05, 0.9, 0.1  # overshoot, way back, largest weight of the image's own projection


class _Fab(Search):
    """Restart r aims at the r-th most likely wrong class."""

    stays_inside = False

    def __init__(self, problem: Problem, *, steps: int, targets: Tensor) -> None:
        self.problem, self.steps, self.targets = problem, steps, targets

    def begin(self, slots: Slots) -> None:
        slots["target"] = self.targets[slots["sample"], slots["restart"]]
        slots["points"] = slots["x"].clone()
        slots["best"] = slots["x"].clone()
        slots["best_distance"] = torch.full_like(slots["x"].flatten(1)[:, 0], torch.inf, dtype=torch.float64)

    def loss(self, logits: Tensor, slots: Slots) -> Tensor:
        return losses.difference(logits, slots["classes"], slots["target"])

    def worth_offering(self, slots: Slots, hit: Tensor) -> Tensor:
        if math.isinf(self.problem.threat.eps):
            return torch.zeros_like(hit)
        return hit & (distance(slots["points"] - slots["x"], self.problem.threat.norm) <= self.problem.threat.eps)

    def move(self, slots: Slots, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        norm, x, tested = self.problem.threat.norm, slots["x"], slots["points"]
        points = self._go_back(slots, self.problem.succeeded(logits, slots["classes"]))
        # The boundary, linearised at the tested point: loss + <gradient, z - tested> = 0.
        normal = gradient.flatten(1)
        gap = -(loss + (normal * (points - tested).flatten(1)).sum(dim=1))
        gap_of_x = -(loss + (normal * (x - tested).flatten(1)).sum(dim=1))
        twice = nearest_on_hyperplane(
            torch.cat([points, x]), torch.cat([gradient, gradient]), torch.cat([gap, gap_of_x]), norm
        )
        from_points, from_x = twice.chunk(2)
        alpha = per_sample(_weight_of_image(from_points, from_x, norm), x)
        slots["points"] = ((points + ETA * from_points) * (1 - alpha) + (x + ETA * from_x) * alpha).clamp_(0, 1)
        over = slots["age"] + 1 >= self.steps
        if bool(over.any()):
            self._finish(slots, over)
        return over

    def _go_back(self, slots: Slots, hit: Tensor) -> Tensor:
        """Remember adversarial points that are closer than before; the points, those moved back towards the image."""
        x, points = slots["x"], slots["points"]
        away = distance(points - x, self.problem.threat.norm)
        closer = hit & (away < slots["best_distance"])
        slots["best_distance"] = torch.where(closer, away, slots["best_distance"])
        slots["best"] = torch.where(per_sample(closer, x), points, slots["best"])
        return torch.where(per_sample(hit, x), x + BETA * (points - x), points)

    def _finish(self, slots: Slots, over: Tensor) -> None:
        """Slots that end offer their best point; those without one offer the last."""
        found = over & torch.isfinite(slots["best_distance"])
        slots["points"] = torch.where(per_sample(found, slots["x"]), slots["best"], slots["points"])


def _weight_of_image(from_points: Tensor, from_x: Tensor, norm: str) -> Tensor:
    near = distance(from_points, norm).clamp(min=1e-8)
    far = distance(from_x, norm).clamp(min=1e-8)
    return (near / (near + far)).clamp(0, ALPHA_MAX).to(from_x.dtype)


@dataclass(frozen=True)
class FAB(Attack):
    """Seeks the nearest example, towards `targets` wrong classes in turn; a sample is fooled when one lies within eps.

    With eps = math.inf it is a minimum-norm attack: every class is tried and the nearest example returned. With a
    finite eps a sample retires as soon as an example lies in the ball.

    steps: linearisations per class. targets: how many classes to aim at; at most classes - 1 are.
    """

    name: ClassVar[str] = "fab"

    _: KW_ONLY
    steps: int = 100
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self.steps, self.targets)

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        refuse_targeted(problem, self.name)
        ranking = likely_targets(clean, problem.classes, self.targets)
        search = _Fab(problem, steps=self.steps, targets=ranking)
        engine.run(problem, search, ledger=ledger, restarts=ranking.shape[1], batch_size=self.batch_size)
