"""The fast gradient sign method (Goodfellow, Shlens and Szegedy 2015), and its forms for l2 and l1."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry import ball
from robustres.attacks.geometry.losses import LossName
from robustres.attacks.search import engine
from robustres.attacks.search.engine import Slots
from robustres.attacks.search.gradient import GradientSearch


class _Fgsm(GradientSearch):
    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        slots["points"] = slots["x"].clone()

    def step(self, slots: Slots, loss: Tensor, gradient: Tensor) -> Tensor:
        threat = self.problem.threat
        direction = ball.unit_direction(gradient, slots["points"], threat.norm)
        moved = slots["points"] + threat.eps * direction
        slots["points"] = ball.project_(moved, slots["x"], slots["low"], slots["high"], threat)
        return torch.ones_like(slots["age"], dtype=torch.bool)


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps along the steepest direction, from the image itself.

    loss: "ce", "margin", "dlr", or one of the scale-invariant losses "scaled-ce" and "probability-margin".
    """

    kind: ClassVar[str] = "fgsm"

    _: KW_ONLY
    loss: LossName = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_budget()

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        engine.run(problem, _Fgsm(problem, self.loss), ledger=ledger, restarts=1, batch_size=self.batch_size)
