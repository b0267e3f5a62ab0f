"""Searches that follow a gradient and switch to the margin loss where the gradient is exactly zero.

Cross-entropy saturates: with logits scaled by 100 the gradient in float32 is exactly zero for most samples, and an
attack that stays there reports robustness that does not exist. Such a sample switches to the margin loss at the same
point, at the cost of one gradient evaluation and no step.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry import losses
from robustres.attacks.geometry.losses import Loss, LossName
from robustres.attacks.search.engine import Search, Slots


class GradientSearch(Search):
    """A search that maximises a loss by its gradient; subclasses define the step."""

    def __init__(self, problem: Problem, loss: LossName) -> None:
        chosen = losses.LOSSES[loss]
        self.problem = problem
        self._loss: Loss = losses.targeted(chosen) if problem.targeted else chosen
        self._may_switch = loss != "margin"

    def begin(self, slots: Slots) -> None:
        slots["by_margin"] = torch.zeros_like(slots["sample"], dtype=torch.bool)

    def loss(self, logits: Tensor, slots: Slots) -> Tensor:
        value = self._loss(logits, slots["classes"])
        if not bool(slots["by_margin"].any()):
            return value
        return torch.where(slots["by_margin"], self.problem.margin(logits, slots["classes"]), value)

    def move(self, slots: Slots, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        switched = slots["stuck"] & ~slots["by_margin"]
        if not self._may_switch or not bool(switched.any()):
            return self.step(slots, loss, gradient)
        kept = slots.taken(switched)
        over = self.step(slots, loss, gradient)
        for name, values in kept.items():
            slots[name] = slots[name].index_put((switched,), values)
        slots["by_margin"] = slots["by_margin"] | switched
        slots["age"] = slots["age"] - switched.to(torch.int64)
        self.switched(slots, switched)
        return over & ~switched

    def switched(self, slots: Slots, mask: Tensor) -> None:
        """Discard the values of the former loss for the slots in the mask, which have just switched to the margin."""

    @abstractmethod
    def step(self, slots: Slots, loss: Tensor, gradient: Tensor) -> Tensor:
        """Move `points` along the gradient; return the mask of slots that have ended."""
