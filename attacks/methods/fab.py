"""Fast adaptive boundary attack, targeted form (Croce and Hein 2020, "Minimally distorted adversarial examples").

Each step linearises the boundary between the label and one other class, moves onto the hyperplane both from the
current point and from the image, and takes a weighted mean that is biased towards the image. From an adversarial
point it first goes back towards the image.

One difference from the published loop: the gradient at the point just tested is used for the next step even after going
back, whereas the published loop runs the model once more to obtain the gradient there; the hyperplane is that of the
tested point. An iteration thus costs one gradient instead of a gradient and a forward pass.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry.ball import per_sample
from robustres.attacks.geometry.hyperplane import Normals
from robustres.attacks.search import engine
from robustres.attacks.search import success_forecast as prospects
from robustres.attacks.search.engine import Slots
from robustres.attacks.search.minimum_norm import MinimumNormSearch
from robustres.attacks.search.targets import TowardsTargets, aims

TOLERANCE = 1e-2  # relative, of the projections; the overshoot is five times as large
CACHED = 2**18  # pixel values that are projected at once on a CPU
ETA, BETA, ALPHA_MAX = 1.05, 0.9, 0.1  # overshoot, step back to the image, largest weight of the image's projection


class BoundarySearch(MinimumNormSearch):
    """The published loop on one difference of logits, which subclasses define."""

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        slots["stretch"], slots["stretch_from_x"] = (torch.ones_like(slots["best_distance"]) for _ in range(2))

    def next_points(self, slots: Slots, hit: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        x, stretches = slots["x"], (slots["stretch"], slots["stretch_from_x"])
        # A processor's cache holds few images: projecting a whole batch at once would run at the speed of main memory.
        rows = max(CACHED // x[0].numel(), 1) if x.device.type == "cpu" else len(x)
        parts = (torch.split(values, rows) for values in (x, slots["points"], hit, loss, gradient, *stretches))
        moved = [self._step(*part) for part in zip(*parts, strict=True)]
        points, slots["stretch"], slots["stretch_from_x"] = (torch.cat(part) for part in zip(*moved, strict=True))
        return points

    def _step(
        self,
        x: Tensor,
        tested: Tensor,
        hit: Tensor,
        loss: Tensor,
        gradient: Tensor,
        stretch: Tensor,
        stretch_from_x: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next points, and the stretches of both projections."""
        back = hit.to(x.dtype) * (1 - BETA)
        points = torch.lerp(tested, x, per_sample(back, x)) if bool(hit.any()) else tested
        # The boundary, linearised at the tested point: loss + <gradient, z - tested> = 0.
        rise = torch.linalg.vecdot(gradient.flatten(1), (x - tested).flatten(1))
        normals = Normals(gradient, self.problem.threat.norm)
        onto, stretch = normals.move(points, -(loss + back * rise), stretch, tolerance=TOLERANCE)
        onto_from_x, stretch_from_x = normals.move(x, -(loss + rise), stretch_from_x, tolerance=TOLERANCE)
        near, far = self.lengths(onto).clamp(min=1e-8), self.lengths(onto_from_x).clamp(min=1e-8)
        alpha = per_sample((near / (near + far)).clamp(0, ALPHA_MAX), x)
        onwards = torch.add(points, onto, alpha=ETA, out=onto)
        onwards_from_x = torch.add(x, onto_from_x, alpha=ETA, out=onto_from_x)
        return onwards.lerp_(onwards_from_x, alpha).clamp_(0, 1), stretch, stretch_from_x


class FabSearch(TowardsTargets, BoundarySearch):
    def __init__(self, problem: Problem, settings: "FAB", targets: Tensor) -> None:
        super().__init__(problem, steps=settings.steps, stops_inside=True)
        self.targets, self.gives_up = targets, settings.give_up and math.isfinite(problem.threat.eps)

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        prospects.begin(slots)

    def loss(self, logits: Tensor, slots: Slots) -> Tensor:
        return self.lead(logits, slots)

    def move(self, slots: Slots, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        over = super().move(slots, logits, loss, gradient)
        if not self.gives_up:
            return over
        short = self.problem.threat.eps - slots["best_distance"]
        return over | prospects.hopeless(slots, short, steps=self.steps, marks=10)


@dataclass(frozen=True)
class FAB(Attack):
    """Search for the nearest example towards `targets` wrong classes in turn; an example within eps is a success.

    If the caller names the targets, the search is for the nearest image that the model answers with its target.

    With eps = math.inf it is a minimum-norm attack: every class is tried and the nearest example is returned. With a
    finite eps a sample retires as soon as an example lies in the ball.

    steps: linearisations per class. targets: how many classes to aim at, at most classes - 1. give_up: abandon a class
    early when the distance is not expected to fall to eps.
    """

    kind: ClassVar[str] = "fab"

    _: KW_ONLY
    steps: int = 100
    targets: int = 9
    give_up: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("steps", "targets")

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        search = FabSearch(problem, self, aims(problem, clean, self.targets))
        engine.run(problem, search, ledger=ledger, restarts=search.targets.shape[1], batch_size=self.batch_size)
