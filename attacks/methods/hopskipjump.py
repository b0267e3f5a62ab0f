"""HopSkipJump (Chen, Jordan and Wainwright 2020): the nearest example from the model's decisions alone.

From a point just across the boundary, the decisions at random points around it give an estimate of the gradient
direction; a step along it and a bisection back towards the image lead to the next point. Neither logits nor gradients
are used: the attacker sees only the predicted classes. One difference from the published attack: an iteration starts at
the nearest example found, not at the last one.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem, in_parts
from robustres.attacks.geometry import ball
from robustres.attacks.geometry.randomness import normal, sample_keys, uniform
from robustres.attacks.search.targets import refuse_targeted
from robustres.numerics import distance
from robustres.threat import Norm

STARTS = 20  # largest number of random images tried as a first example
BISECTION = 1e-3  # relative precision of the bisection to the boundary
FIRST_RADIUS, LEAST_RADIUS = 0.1, 0.02  # of the probes, relative to the distance, at the start and at the end
HALVINGS = 10  # of a step that does not cross the boundary


class _Decisions:
    """Decides which images are examples for one sample, by the model's predictions, while queries are left."""

    def __init__(self, problem: Problem, sample: int, queries: int, batch_size: int) -> None:
        self.problem, self.batch_size, self.left = problem, batch_size, queries
        self.x, self.label = problem.x[sample : sample + 1], problem.classes[sample : sample + 1]

    def __call__(self, points: Tensor) -> Tensor:
        """Mask (B,) of the points that are examples; points beyond the remaining queries count as none."""
        asked = points[: self.left].to(self.x.dtype)
        self.left -= len(asked)
        answers = [
            self.problem.succeeded(self.problem.answers(part), self.label.expand(len(part)))
            for part in in_parts(asked, self.batch_size)
        ]
        return torch.cat([*answers, torch.zeros(len(points) - len(asked), dtype=torch.bool, device=points.device)])


class _Walk:
    """The search along the boundary for one sample."""

    def __init__(self, decide: _Decisions, key: Tensor, norm: str, probes: int) -> None:
        self.decide, self.key, self.norm, self.probes = decide, key, norm, probes
        self.x, self.draw = decide.x.to(decide.problem.dtype), 0
        self.point: Tensor | None = None
        self.away = math.inf

    def start(self) -> None:
        """Start at a random image that is an example, moved back to the boundary."""
        for _ in range(STARTS):
            noise = uniform(self.key, tuple(self.x.shape[1:]), draw=self._next_draw(), dtype=self.x.dtype)
            if bool(self.decide(noise)[0]):
                self._take(self._bisected(noise))
                return

    def step(self, number: int) -> None:
        """One iteration: probe around the point, step, bisect; keep the nearer point."""
        assert self.point is not None
        direction = self._direction(self.point, max(FIRST_RADIUS / number, LEAST_RADIUS) * self.away, number)
        length = self.away / math.sqrt(number)
        for _ in range(HALVINGS):
            if self.decide.left <= 0:
                return
            onwards = (self.point + length * direction).clamp(0, 1)
            if bool(self.decide(onwards)[0]):
                self._take(self._bisected(onwards))
                return
            length /= 2

    def _direction(self, point: Tensor, radius: float, number: int) -> Tensor:
        """Estimated gradient direction, from the decisions at random points around the point (equations 11 and 13)."""
        count = min(int(self.probes * math.sqrt(number)), max(self.decide.left - HALVINGS, 1))
        keys, draw = self.key.expand(count), torch.arange(count, device=point.device) + self.draw
        self.draw += count
        shape = tuple(self.x.shape[1:])
        noise = normal(keys, shape, draw=draw, dtype=self.x.dtype)
        if self.norm == "linf":
            noise = 2 * uniform(keys, shape, draw=draw, dtype=self.x.dtype) - 1
        noise = noise / torch.linalg.vector_norm(noise.flatten(1), dim=1).reshape(-1, 1, 1, 1)
        scale = radius * math.sqrt(noise[0].numel()) if self.norm == "linf" else radius
        probes = (point + scale * noise).clamp(0, 1)
        signs = self.decide(probes).to(self.x.dtype) * 2 - 1
        weights = signs if bool((signs == signs[0]).all()) else signs - signs.mean()
        estimate = (weights.reshape(-1, 1, 1, 1) * (probes - point)).sum(dim=0, keepdim=True)
        return ball.unit_direction(estimate, point, self.norm)

    def _bisected(self, across: Tensor) -> Tensor:
        """An example close to the boundary, between the image and the point across it."""
        near, far, nearest = 0.0, 1.0, across
        if self.norm == "linf":
            far = float((across - self.x).abs().amax())
        while far - near > BISECTION * far and self.decide.left > 0:
            middle = (near + far) / 2
            between = self._between(across, middle)
            if bool(self.decide(between)[0]):
                far, nearest = middle, between
            else:
                near = middle
        return nearest

    def _between(self, across: Tensor, share: float) -> Tensor:
        """l2: the point at this share of the line; linf: the point clipped to this distance."""
        if self.norm == "linf":
            return torch.minimum(torch.maximum(across, self.x - share), self.x + share)
        return torch.lerp(self.x, across, share)

    def _take(self, point: Tensor) -> None:
        away = float(distance(point - self.x, self.norm))
        if away < self.away:
            self.point, self.away = point, away

    def _next_draw(self) -> int:
        self.draw += 1
        return self.draw - 1


@dataclass(frozen=True)
class HopSkipJump(Attack):
    """Search along the boundary by decisions alone, within a number of queries; l2 and linf.

    With eps = math.inf the nearest example found is returned; with a finite eps a sample retires once one lies inside
    the ball. A sample for which no random image is an example is left as it is.

    queries: model evaluations per sample, not counting those with which every attack checks the model and verifies.
    probes: decisions used for the first direction; the n-th direction uses sqrt(n) times as many.
    """

    kind: ClassVar[str] = "hopskipjump"
    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")
    minimum_norm: ClassVar[bool] = True
    follows_gradients: ClassVar[bool] = False

    _: KW_ONLY
    queries: int = 1000
    probes: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("queries", "probes")

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        refuse_targeted(problem, self.name)
        wanted = self.threat.eps if math.isfinite(self.threat.eps) else 0.0
        keys = sample_keys(self.seed, problem.index, torch.zeros_like(problem.index))
        for sample in (~ledger.fooled).nonzero().flatten().tolist():
            decide = _Decisions(problem, sample, self.queries, self.batch_size)
            walk = _Walk(decide, keys[sample : sample + 1], self.threat.norm, self.probes)
            walk.start()
            number = 0
            while walk.point is not None and decide.left > 0 and walk.away > wanted:
                number += 1
                walk.step(number)
            place = torch.tensor([sample], device=problem.x.device)
            ledger.count(place, evaluations=torch.tensor([self.queries - decide.left], device=place.device))
            ledger.count(place, steps=torch.tensor([number], device=place.device))
            if walk.point is not None:
                ledger.offer(place, walk.point)
