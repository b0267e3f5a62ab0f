"""Steps onto the linearised boundary, from the nearest miss: a last search where gradients hold over short ways only.

The length of a step is the distance at which the margin, linearised at the present point, becomes zero. On fine
ripples these steps are tiny and climb the nearest crest, which fixed step lengths jump over.
"""

import torch
from torch import Tensor

from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry import ball
from robustres.attacks.geometry.ball import per_sample
from robustres.attacks.geometry.randomness import sample_keys
from robustres.attacks.search.engine import Slots
from robustres.attacks.search.gradient import GradientSearch
from robustres.attacks.search.half_cosine import half_cosine

LARGEST = 0.02  # step, as a share of eps; it falls to 0 along half a cosine
APART = 0.05  # size of the random change of the start, as a share of the ball, after the first restart


class Refinement(GradientSearch):
    """Each search starts at the best image in the ledger; those after the first, from a random point near it."""

    def __init__(self, problem: Problem, ledger: Ledger, *, steps: int, seed: int) -> None:
        super().__init__(problem, "margin")
        self.ledger, self.steps, self.seed = ledger, steps, seed

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        x, low, high, threat = slots["x"], slots["low"], slots["high"], self.problem.threat
        best = self.ledger.examples[slots["sample"]].to(x.dtype)
        keys = sample_keys(self.seed, slots["index"], slots["restart"])
        share = torch.where(slots["restart"] > 0, APART, 0.0).to(x.dtype)
        away = ball.random_start(keys, x, low, high, threat) - x
        slots["points"] = ball.project_(torch.addcmul(best, away, per_sample(share, x)), x, low, high, threat)

    def step(self, slots: Slots, loss: Tensor, gradient: Tensor) -> Tensor:
        threat, points = self.problem.threat, slots["points"]
        direction = ball.unit_direction(gradient, points, threat.norm)
        slope = torch.linalg.vecdot(gradient.flatten(1), direction.flatten(1)).clamp(min=1e-12)
        fall = half_cosine(slots["age"].to(points.dtype), self.steps)
        size = torch.minimum(loss.neg().clamp(min=0).to(points.dtype) / slope, LARGEST * threat.eps * fall)
        moved = torch.addcmul(points, direction, per_sample(size, points))
        slots["points"] = ball.project_(moved, slots["x"], slots["low"], slots["high"], threat)
        return slots["age"] + 1 >= self.steps
