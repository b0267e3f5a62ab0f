"""Targeted Auto-PGD: one run towards each of the most likely wrong classes (Croce and Hein 2020)."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry import losses
from robustres.attacks.methods.apgd import AutoPgd, SparseAutoPgd
from robustres.attacks.search import engine
from robustres.attacks.search import success_forecast as prospects
from robustres.attacks.search.engine import Search, Slots
from robustres.attacks.search.targets import TowardsTargets, likely_targets, refuse_targeted


class _Towards(TowardsTargets, AutoPgd):
    """Any wrong answer is a success, not only the target."""

    def __init__(self, problem: Problem, settings: "APGDTargeted", targets: Tensor) -> None:
        super().__init__(problem, steps=settings.steps, seed=settings.seed, loss="dlr")
        self.targets, self.gives_up = targets, settings.give_up

    def begin(self, slots: Slots) -> None:
        prospects.begin(slots)
        super().begin(slots)

    def loss(self, logits: Tensor, slots: Slots) -> Tensor:
        value = losses.dlr_targeted(logits, slots["classes"], slots["target"])
        if not bool(slots["by_margin"].any()):
            return value
        towards = losses.difference(logits, slots["classes"], slots["target"])
        return torch.where(slots["by_margin"], towards, value)

    def step(self, slots: Slots, loss: Tensor, gradient: Tensor) -> Tensor:
        over = super().step(slots, loss, gradient)
        if not self.gives_up:
            return over
        return over | prospects.hopeless(slots, slots["best_loss"], steps=self.steps, marks=5)


class _SparseTowards(_Towards, SparseAutoPgd):
    """The same in l1."""


def search(problem: Problem, settings: "APGDTargeted", targets: Tensor) -> Search:
    """The search towards each of the targets (N, T), in the form for the norm of the threat."""
    kind = _SparseTowards if problem.threat.norm == "l1" else _Towards
    return kind(problem, settings, targets)


@dataclass(frozen=True)
class APGDTargeted(Attack):
    """Auto-PGD on the targeted difference-of-logits ratio, for `targets` wrong classes in turn, most likely first.

    targets: how many classes to aim at, at most classes - 1.
    steps: updates per class. give_up: abandon a class early when its loss is not expected to become positive.
    """

    kind: ClassVar[str] = "apgd-t"

    _: KW_ONLY
    steps: int = 100
    targets: int = 9
    give_up: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("steps", "targets")
        self.require_budget()

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        refuse_targeted(problem, self.name)
        targets = likely_targets(clean, problem.classes, self.targets)
        towards = search(problem, self, targets)
        engine.run(problem, towards, ledger=ledger, restarts=targets.shape[1], batch_size=self.batch_size)
