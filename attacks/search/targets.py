"""Choice of target classes, and searches that aim at one target after another."""

from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry import losses
from robustres.attacks.search.engine import Search, Slots
from robustres.errors import InputError


def likely_targets(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The `count` most likely wrong classes (N, min(count, classes - 1)), most likely first.

    >>> likely_targets(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]), 9)
    tensor([[2, 1]])
    """
    others = logits.nan_to_num().scatter(1, labels[:, None], -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def aims(problem: Problem, clean: Tensor, count: int) -> Tensor:
    """The classes to aim at in turn: the caller's target if given, else `likely_targets`."""
    return problem.classes[:, None] if problem.targeted else likely_targets(clean, problem.classes, count)


def refuse_targeted(problem: Problem, name: str) -> None:
    """Raise InputError if the caller gives targets to an attack that chooses its own."""
    if problem.targeted:
        raise InputError(
            f"{name} chooses its own targets; to choose the target yourself use pgd, apgd, fab or ddn with targets="
        )


class TowardsTargets(Search):
    """Mixin for searches: restart r aims at the r-th of each sample's targets (N, restarts), which the slots hold."""

    apart: ClassVar[bool] = True
    problem: Problem
    targets: Tensor

    def begin(self, slots: Slots) -> None:
        slots["target"] = self.targets[slots["sample"], slots["restart"]]
        super().begin(slots)  # type: ignore[safe-super]

    def lead(self, logits: Tensor, slots: Slots) -> Tensor:
        """Lead of the target over the label, (B,), or over every other class if the caller chose the target."""
        if self.problem.targeted:
            return self.problem.margin(logits, slots["classes"])
        return losses.difference(logits, slots["classes"], slots["target"])
