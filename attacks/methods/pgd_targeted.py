"""Adaptive PGD towards one wrong class after another; part of the strong ensemble."""

import torch
from torch import Tensor

from robustres.attacks.base.problem import Problem
from robustres.attacks.methods.pgd import PGD, AdaptivePgd
from robustres.attacks.search.engine import Slots
from robustres.attacks.search.targets import TowardsTargets


class TowardsClass(TowardsTargets, AdaptivePgd):
    """Restart r maximises the lead of the r-th target over the label; any wrong answer is a success.

    A search whose lead would not become positive even at one and a half times its recent rate of progress shortens its
    steps and soon ends: a class that is out of reach costs about twelve of fifty gradients.
    """

    def __init__(self, problem: Problem, settings: PGD, targets: Tensor) -> None:
        super().__init__(problem, settings)
        self.targets = targets

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        slots["best_lead"] = torch.full_like(slots["cap"], -torch.inf)

    def loss(self, logits: Tensor, slots: Slots) -> Tensor:
        return self.lead(logits, slots)

    def step(self, slots: Slots, loss: Tensor, gradient: Tensor) -> Tensor:
        slots["best_lead"] = torch.maximum(slots["best_lead"], loss.to(slots["best_lead"].dtype))
        return super().step(slots, loss, gradient)

    def progress(self, slots: Slots) -> Tensor:
        return slots["best_lead"]
