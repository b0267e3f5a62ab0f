"""Linearised direction and norm: the nearest example in l2, linf and l1 with few gradients.

Our own attack, after DDN (Rony et al. 2019) and FMN (Pintor et al. 2021), with three differences:

- The radius of the next point is the distance, in the next direction, at which the loss linearised at the present point
  reaches the boundary, within limits that tighten along a cosine; in DDN and FMN the radius changes by a fixed factor
  or stays at a first estimate.
- The direction turns towards the direction of steepest ascent in the norm itself, by a share that falls along a cosine
  (squared in l2 and linf); in DDN and FMN the step has a length in pixel units that does not depend on the distance to
  the boundary.
- The gradients are divided among several searches with different smoothings of the largest other logit, which reach
  different parts of the boundary; the nearest end point counts.

The loss is the margin with the largest other logit replaced by log sum exp(s z_k) / s, whose gradient has the direction
of the gradient of the cross-entropy of the logits times s.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry import ball
from robustres.attacks.geometry.ball import per_sample
from robustres.attacks.geometry.losses import smooth_margin
from robustres.attacks.search import engine
from robustres.attacks.search.engine import Slots
from robustres.attacks.search.half_cosine import half_cosine
from robustres.attacks.search.minimum_norm import MinimumNormSearch
from robustres.errors import InputError
from robustres.threat import widest

LAST_TURN = 0.01  # final share of the steepest direction
FIRST_CHANGE, LAST_CHANGE = 0.5, 0.1  # largest relative change of the radius per step, at the start and at the end
LEAST_CHANGE = 0.05  # smallest change, as a share of the largest
FIRST_OVERSHOOT, LAST_OVERSHOOT = 0.02, 5e-4  # relative, beyond the linearised boundary


class LdnSearch(MinimumNormSearch):
    """Restart r smooths the largest other logit at a scale of `sharpness[r]` over the spread of the clean logits."""

    apart = True

    def __init__(self, problem: Problem, settings: "LDN", clean: Tensor) -> None:
        super().__init__(problem, steps=settings.steps, stops_inside=True)
        spread = clean.nan_to_num().std(dim=1).clamp(min=torch.finfo(clean.dtype).tiny)
        self.scales = torch.tensor(settings.sharpness, dtype=clean.dtype, device=clean.device) / spread[:, None]
        self.shares = torch.tensor(settings.shares, device=clean.device)
        self.widest = widest(problem.threat.norm, problem.x[0].numel())

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        slots["radius"] = torch.full_like(slots["best_distance"], torch.inf)
        slots["margin"] = torch.zeros_like(slots["best_distance"])

    def limit(self, slots: Slots) -> Tensor:
        return self.shares[slots["restart"]]

    def loss(self, logits: Tensor, slots: Slots) -> Tensor:
        scale = self.scales[slots["sample"], slots["restart"]].to(logits.dtype)
        value = smooth_margin(logits, slots["classes"], scale)
        return -value if self.problem.targeted else value

    def move(self, slots: Slots, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        slots["margin"] = self.problem.margin(logits, slots["classes"]).to(slots["margin"].dtype)
        return super().move(slots, logits, loss, gradient)

    def next_points(self, slots: Slots, hit: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        x, margin, norm = slots["x"], slots["margin"], self.problem.threat.norm
        fall = half_cosine(slots["age"].to(x.dtype), self.limit(slots))
        turn = LAST_TURN + (1 - LAST_TURN) * (fall if norm == "l1" else fall.square())
        delta = slots["points"] - x
        if norm == "l1":
            reach = self.lengths(delta) - margin / _slope_l1(slots["points"], delta, gradient)
            radius = self._radius(slots, reach, hit, fall)
            largest = gradient.flatten(1).abs().amax(dim=1).clamp(min=1e-12)
            stepped = delta + gradient * per_sample(turn / largest, x)
            return (x + ball.project_l1_box(stepped, x, radius)).clamp_(0, 1)
        direction = _turned(delta, gradient, slots, turn, norm)
        along, ahead = torch.linalg.vecdot(gradient.flatten(1), delta.flatten(1)), self._rise(gradient, direction)
        radius = self._radius(slots, (along - margin) / ahead, hit, fall)
        return torch.addcmul(x, direction, per_sample(radius, x)).clamp_(0, 1)

    def _rise(self, gradient: Tensor, direction: Tensor) -> Tensor:
        """Directional derivative of the loss (B,), at least a tiny positive number."""
        rise: Tensor = torch.linalg.vecdot(gradient.flatten(1), direction.flatten(1)).clamp(min=1e-12)
        return rise

    def _radius(self, slots: Slots, reach: Tensor, hit: Tensor, fall: Tensor) -> Tensor:
        """The radius at which the linearised boundary is reached, clamped to shrink after a hit, else to grow."""
        radius = slots["radius"]
        # In the last third, a search that has found no example yet takes the wide limits again, so that it crosses.
        fall = fall.where((fall > 0.25) | torch.isfinite(slots["best_distance"]), 1.0)
        most = LAST_CHANGE + (FIRST_CHANGE - LAST_CHANGE) * fall
        least = LEAST_CHANGE * most
        reach = reach * (1 + LAST_OVERSHOOT + (FIRST_OVERSHOOT - LAST_OVERSHOOT) * fall.square())
        nearer = reach.clamp(radius * (1 - most), radius * (1 - least))
        farther = reach.clamp(radius * (1 + least), radius * (1 + most))
        following = torch.where(torch.isfinite(radius), torch.where(hit, nearer, farther), reach)
        slots["radius"] = torch.minimum(following, slots["best_distance"]).clamp(0, self.widest)
        return slots["radius"]


def _turned(delta: Tensor, gradient: Tensor, slots: Slots, turn: Tensor, norm: str) -> Tensor:
    """The direction of delta turned towards the steepest direction, of unit length in the norm."""
    steepest, share = ball.unit_direction(gradient, slots["points"], norm), per_sample(turn, delta)
    if norm == "l2":
        return ball.unit_direction(torch.lerp(ball.unit_direction(delta, delta, norm), steepest, share), delta, norm)
    length = per_sample(slots["radius"].clamp(min=1e-12), delta)
    return torch.addcmul(delta / length, steepest, 2 * share).clamp_(-1, 1)


def _slope_l1(points: Tensor, delta: Tensor, gradient: Tensor) -> Tensor:
    """Slope of the loss in the l1 norm (B,): its mean over delta, at most that of the steepest movable pixel."""
    room = torch.where(gradient > 0, 1 - points, points)
    steepest = (gradient.abs() * (room > 1e-3)).flatten(1).amax(dim=1).clamp(min=1e-12)
    length = delta.flatten(1).abs().sum(dim=1)
    mean = torch.linalg.vecdot(gradient.flatten(1), delta.flatten(1)) / length.clamp(min=1e-12)
    return torch.where(mean > 0, torch.minimum(mean, steepest), steepest)


@dataclass(frozen=True)
class LDN(Attack):
    """Points just beyond the linearised boundary, in directions that turn less and less; several searches share the
    steps.

    With eps = math.inf the nearest example found is returned; with a finite eps a sample retires once an example lies
    inside the ball.

    steps: gradients per sample, of all searches together. sharpness: one search per number, the standard deviation to
    which it scales a sample's clean logits; a low value weighs all classes, a high value follows the nearest class
    alone.

    >>> from robustres.threat import ThreatModel
    >>> LDN(ThreatModel("l2", math.inf), steps=45).shares
    (22, 23)
    """

    kind: ClassVar[str] = "ldn"
    minimum_norm: ClassVar[bool] = True

    _: KW_ONLY
    steps: int = 100
    sharpness: tuple[float, ...] = (4.0, 20.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sharpness or not all(0 < value < math.inf for value in self.sharpness):
            raise InputError(f"sharpness must be one or several positive numbers, got {self.sharpness}")
        self.require_counts("steps")
        if self.steps < len(self.sharpness):
            raise InputError(f"{len(self.sharpness)} searches need at least as many steps, got {self.steps}")

    @property
    def shares(self) -> tuple[int, ...]:
        """How many of the steps each search takes."""
        count = len(self.sharpness)
        return tuple((self.steps + position) // count for position in range(count))

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        search = LdnSearch(problem, self, clean)
        engine.run(problem, search, ledger=ledger, restarts=len(self.sharpness), batch_size=self.batch_size)
