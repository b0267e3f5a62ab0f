"""Auto-PGD (Croce and Hein 2020, "Reliable evaluation of adversarial robustness", algorithm 1), parameter-free.

The step size halves, and the search goes back to its best point, when progress stalls at one of a fixed series of
checkpoints. In l1 the step is sparse and its sparsity adapts (Croce and Hein 2021, "Mind the box", algorithm 1).
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry import ball
from robustres.attacks.geometry.ball import copy_rows, per_sample
from robustres.attacks.geometry.losses import LossName
from robustres.attacks.geometry.randomness import normal, sample_keys, uniform
from robustres.attacks.search import engine
from robustres.attacks.search.engine import Slots
from robustres.attacks.search.gradient import GradientSearch

MOMENTUM = 0.75
ENOUGH_INCREASES = 0.75  # share of the updates between two checkpoints that must have raised the loss


def checkpoints(steps: int) -> tuple[int, ...]:
    """The ages at which progress is judged: the intervals shrink from 22 % of the steps by 3 % each, down to 6 %.

    >>> checkpoints(100)
    (22, 41, 57, 70, 80, 87, 93, 99)
    """
    interval, shortest, fall = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    ages, age = [], interval
    while age <= steps:
        ages.append(age)
        interval = max(interval - fall, shortest)
        age += interval
    return tuple(ages)


class AutoPgd(GradientSearch):
    """The search for l2 and linf; `step` reads like the paper's loop body."""

    def __init__(self, problem: Problem, *, steps: int, seed: int, loss: LossName) -> None:
        super().__init__(problem, loss)
        self.steps, self.seed = steps, seed
        ages = torch.zeros(steps + 1, dtype=torch.int64)
        previous = 0
        for age in checkpoints(steps):
            ages[age], previous = age - previous, age
        self.interval = ages.to(problem.x.device)  # updates since the last checkpoint, 0 at ages that are no checkpoint

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        x, threat = slots["x"], self.problem.threat
        keys = sample_keys(self.seed, slots["index"], slots["restart"])
        start = _surface_start(keys, x, threat.norm, threat.eps)
        slots["points"] = ball.project_(start, x, slots["low"], slots["high"], threat)
        slots["previous"], slots["best"] = slots["points"].clone(), slots["points"].clone()
        slots["best_gradient"] = torch.zeros_like(x)
        lowest = torch.full((slots.count,), -torch.inf, dtype=x.dtype, device=x.device)
        for name in ("best_loss", "last_loss", "loss_at_checkpoint"):
            slots[name] = lowest.clone()
        slots["increases"] = torch.zeros_like(slots["age"])
        slots["reduced"] = torch.ones_like(slots["by_margin"])
        slots["size"] = torch.full_like(lowest, 2.0 * threat.eps)

    def switched(self, slots: Slots, mask: Tensor) -> None:
        for name in ("best_loss", "last_loss", "loss_at_checkpoint"):
            slots[name][mask] = -torch.inf

    def step(self, slots: Slots, loss: Tensor, gradient: Tensor) -> Tensor:
        self._remember(slots, loss, gradient)
        gradient = self._checkpoint(slots, gradient)
        threat, points, previous = self.problem.threat, slots["points"], slots["previous"]
        allowed = slots["x"], slots["low"], slots["high"], threat
        target = ball.project_(ball.ascended(points, gradient, slots["size"], threat.norm), *allowed)
        share = per_sample(torch.where(slots["age"] > 0, MOMENTUM, 1.0).to(points.dtype), points)
        # points + MOMENTUM (target - points) + (1 - MOMENTUM) (points - previous)
        onwards = torch.lerp(previous, points, 2.0, out=previous)
        moved = torch.lerp(onwards, target, share, out=previous)
        slots["points"], slots["previous"] = ball.project_(moved, *allowed), points
        return slots["age"] + 1 >= self.steps

    def _remember(self, slots: Slots, loss: Tensor, gradient: Tensor) -> None:
        first = slots["age"] == 0
        slots["increases"] = slots["increases"] + ((loss > slots["last_loss"]) & ~first)
        slots["last_loss"] = loss.to(slots["last_loss"].dtype)
        better = (loss > slots["best_loss"]).nonzero().flatten()
        copy_rows(slots["best"], slots["points"], better)
        copy_rows(slots["best_gradient"], gradient, better)
        copy_rows(slots["best_loss"], slots["last_loss"], better)
        slots["loss_at_checkpoint"] = torch.where(first, slots["best_loss"], slots["loss_at_checkpoint"])

    def _checkpoint(self, slots: Slots, gradient: Tensor) -> Tensor:
        """Halve the step and go back to the best point where progress has stalled; return the gradient to follow."""
        interval = self.interval[slots["age"]]
        judged = interval > 0
        if not bool(judged.any()):
            return gradient
        oscillates = slots["increases"] <= ENOUGH_INCREASES * interval
        idle = ~slots["reduced"] & (slots["loss_at_checkpoint"] >= slots["best_loss"])
        stalled = judged & (oscillates | idle)
        slots["reduced"] = torch.where(judged, stalled, slots["reduced"])
        slots["loss_at_checkpoint"] = torch.where(judged, slots["best_loss"], slots["loss_at_checkpoint"])
        slots["increases"] = slots["increases"].masked_fill(judged, 0)
        slots["size"] = torch.where(stalled, slots["size"] / 2, slots["size"])
        return self._back_at_best(slots, gradient, stalled)

    def _back_at_best(self, slots: Slots, gradient: Tensor, mask: Tensor) -> Tensor:
        """Move the slots in the mask to their best point; return the gradient with that of the best point for these."""
        rows = mask.nonzero().flatten()
        if not len(rows):
            return gradient
        copy_rows(slots["points"], slots["best"], rows)
        return gradient.index_copy(0, rows, slots["best_gradient"].index_select(0, rows))


class SparseAutoPgd(AutoPgd):
    """The search for l1: sparse steps without momentum, projections onto the intersection of ball and box."""

    LEAST_STEP, FALL, FIRST_SHARE, STILL_SPARSER = 0.1, 1.5, 0.2, 0.95

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        size = slots["x"][0].numel() if slots.count else 1
        slots["share"] = torch.full_like(slots["size"], self.FIRST_SHARE)
        slots["moved"] = torch.full_like(slots["size"], float(size))
        slots["size"] = torch.full_like(slots["size"], self.problem.threat.eps)

    def step(self, slots: Slots, loss: Tensor, gradient: Tensor) -> Tensor:
        self._remember(slots, loss, gradient)
        if bool((judged := (slots["age"] > 0) & (slots["age"] % max(int(0.04 * self.steps), 1) == 0)).any()):
            gradient = self._adapt(slots, gradient, judged)
        points = slots["points"]
        size = points[0].numel()
        signs = ball.signs_of_largest(gradient, size - ((1 - slots["share"]) * size).long().clamp(0, size - 1))
        count = torch.linalg.vecdot(signs.flatten(1), signs.flatten(1)).clamp(min=1.0)
        target = torch.addcmul(points, signs, per_sample(slots["size"] / count, points), out=signs)
        slots["points"] = ball.project_(target, slots["x"], slots["low"], slots["high"], self.problem.threat)
        return slots["age"] + 1 >= self.steps

    def _adapt(self, slots: Slots, gradient: Tensor, judged: Tensor) -> Tensor:
        eps = self.problem.threat.eps
        changed = torch.ne(slots["best"], slots["x"], out=torch.empty_like(gradient))  # sums masks much faster
        moved = changed.flatten(1).sum(dim=1)
        sparser = moved / slots["moved"] < self.STILL_SPARSER
        fallen = (slots["size"] / self.FALL).clamp(self.LEAST_STEP * eps, eps)
        slots["size"] = torch.where(judged, torch.where(sparser, eps, fallen), slots["size"])
        share = moved / slots["x"][0].numel() / self.FALL
        slots["share"] = torch.where(judged, share, slots["share"])
        slots["moved"] = torch.where(judged, moved.clamp(min=1.0), slots["moved"])
        return self._back_at_best(slots, gradient, judged & sparser)


def _surface_start(keys: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """A random point on the sphere of radius eps around x (not yet clipped into [0, 1])."""
    shape = tuple(x.shape[1:])
    if norm == "linf":
        direction = 2 * uniform(keys, shape, dtype=x.dtype) - 1
        length = direction.flatten(1).abs().amax(dim=1)
    else:
        direction = normal(keys, shape, dtype=x.dtype)
        order = 2 if norm == "l2" else 1
        length = torch.linalg.vector_norm(direction.flatten(1), ord=order, dim=1)
    return x + direction * per_sample(eps / length, x)


def search_class(norm: str) -> type[AutoPgd]:
    """The form of the search for the norm."""
    return SparseAutoPgd if norm == "l1" else AutoPgd


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD on one loss: "ce" or "dlr" in the standard ensemble, or "margin".

    steps: updates per restart. restarts: independent random starts.
    """

    kind: ClassVar[str] = "apgd"

    _: KW_ONLY
    steps: int = 100
    restarts: int = 1
    loss: LossName = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("steps", "restarts")
        self.require_budget()

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        search = search_class(problem.threat.norm)(problem, steps=self.steps, seed=self.seed, loss=self.loss)
        engine.run(problem, search, ledger=ledger, restarts=self.restarts, batch_size=self.batch_size)
