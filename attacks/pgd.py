"""Projected gradient descent (Madry et al. 2018)."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustres.attacks import ball, engine
from robustres.attacks.attack import Attack
from robustres.attacks.ball import per_sample
from robustres.attacks.engine import Slots
from robustres.attacks.gradient import GradientSearch
from robustres.attacks.ledger import Ledger
from robustres.attacks.losses import LossName
from robustres.attacks.problem import Problem
from robustres.attacks.randomness import sample_keys
from robustres.errors import InputError

Schedule = Literal["constant", "cosine"]


class _Pgd(GradientSearch):
    def __init__(self, problem: Problem, settings: "PGD") -> None:
        super().__init__(problem, settings.loss)
        self.settings = settings
        ages = torch.arange(settings.steps, dtype=torch.float64)
        fall = 0.5 * (1 + torch.cos(math.pi * ages / settings.steps)) if settings.schedule == "cosine" else ages * 0 + 1
        self.sizes = (settings.step_length * fall).to(problem.x)

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        x = slots["x"]
        if self.settings.random_start:
            keys = sample_keys(self.settings.seed, slots["index"], slots["restart"])
            slots["points"] = ball.random_start(keys, x, slots["low"], slots["high"], self.problem.threat)
        else:
            slots["points"] = x.clone()

    def step(self, slots: Slots, loss: Tensor, gradient: Tensor) -> Tensor:
        threat, age = self.problem.threat, slots["age"]
        direction = ball.unit_direction(gradient, slots["points"], threat.norm)
        moved = torch.addcmul(slots["points"], direction, per_sample(self.sizes[age], direction))
        slots["points"] = ball.project_(moved, slots["x"], slots["low"], slots["high"], threat)
        return age + 1 >= self.settings.steps


@dataclass(frozen=True)
class PGD(Attack):
    """Steps along the steepest direction, each followed by the projection into the ball.

    steps: updates per restart.
    step_size: length of the first step in pixel units; None ties it to eps and steps (see `step_length`).
    schedule: "cosine" for steps that fall to 0 along half a cosine, or "constant".
    restarts: how often a sample that was not fooled starts again from another point.
    random_start: start at a random point of the ball instead of at the image.
    loss: "ce", "margin" or "dlr".
    """

    kind: ClassVar[str] = "pgd"

    _: KW_ONLY
    steps: int = 20
    step_size: float | None = None
    schedule: Schedule = "cosine"
    restarts: int = 1
    random_start: bool = True
    loss: LossName = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_budget()
        for field in ("steps", "restarts"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.restarts > 1 and not self.random_start:
            raise InputError(f"{self.restarts} restarts from the same point are the same run; set random_start=True")
        if self.step_size is not None and not self.step_size > 0:
            raise InputError(f"step_size must be positive and in pixel units, got {self.step_size}")

    @property
    def step_length(self) -> float:
        """The first step: as set, or else what its schedule asks for.

        cosine: eps, so that most samples that fall at all fall in the first few steps; the sum of all steps is
        eps * steps / 2. constant: 2.5 eps / steps (Madry et al.), which can cross the ball from any start.
        """
        if self.step_size is not None:
            return self.step_size
        return self.threat.eps if self.schedule == "cosine" else 2.5 * self.threat.eps / self.steps

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        search = _Pgd(problem, self)
        engine.run(problem, search, ledger=ledger, restarts=self.restarts, batch_size=self.batch_size)
