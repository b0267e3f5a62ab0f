"""The best result known so far for every sample; examples are moved into the ball and verified before they enter."""

import torch
from torch import Tensor

from robustres.attacks.base.problem import Problem, in_parts
from robustres.attacks.base.result import AttackResult
from robustres.attacks.geometry import ball
from robustres.numerics import distance


class Ledger:
    """For each sample of a problem: the best image, whether it fools the model, and the cost."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        count, device = len(problem.x), problem.x.device
        self.low, self.high = ball.pixel_bounds(problem.x, problem.threat.eps)
        self.examples = problem.x.clone()
        self.fooled = torch.zeros(count, dtype=torch.bool, device=device)
        self.distance = torch.full((count,), torch.inf, dtype=torch.float64, device=device)
        self.prediction = problem.classes.clone()
        self.loss = torch.full((count,), -torch.inf, dtype=problem.dtype, device=device)
        self.nonfinite = torch.zeros_like(self.fooled)
        self._noted = torch.zeros_like(self.fooled)  # samples whose best image only the search has evaluated
        zeros = torch.zeros(count, dtype=torch.int64, device=device)
        self.steps, self.gradients, self.evaluations, self.zero_gradients = (zeros.clone() for _ in range(4))

    def count(self, samples: Tensor, **spent: Tensor) -> None:
        """Add to the counts of the samples (B,), which may repeat: steps, evaluations, gradients, zero_gradients."""
        for name, number in spent.items():
            getattr(self, name).index_add_(0, samples, number)

    def without_gradients(self) -> Tensor:
        """Mask (N,) of the samples at least half of whose gradients were exactly zero."""
        return 2 * self.zero_gradients >= self.gradients

    def record_clean(self, logits: Tensor) -> None:
        """Record the logits at the unchanged images: those already misclassified are at distance 0."""
        everyone = torch.arange(len(self.fooled), device=self.fooled.device)
        self._enter(everyone, self.problem.x, logits)

    def offer(self, samples: Tensor, points: Tensor) -> Tensor:
        """Move points (B, ...) into the ball, run the model as given, record improvements; return fooled (B,)."""
        x = self.problem.x[samples]
        points = ball.retract(points.to(x.dtype), x, self.low[samples], self.high[samples], self.problem.threat)
        logits = self.problem.answers(points)
        self._enter(samples, points, logits)
        return self.problem.succeeded(logits, self.problem.classes[samples])

    def note(self, samples: Tensor, points: Tensor, margin: Tensor) -> None:
        """Keep misses (B, ...) that are closer to a success than those kept; `margin` (B,) is that of the search."""
        better = (margin > self.loss[samples]) & ~self.fooled[samples]
        better = self._best_of_each(samples, margin, better)
        chosen = samples[better]
        self.examples[chosen] = points[better].to(self.examples.dtype)
        self.loss[chosen] = margin[better].to(self.loss.dtype)
        self._noted[chosen] = True

    def result(self, batch_size: int) -> AttackResult:
        """The result, after evaluating the model as given on misses that only the search has evaluated."""
        for rest in in_parts((self._noted & ~self.fooled).nonzero().flatten(), batch_size):
            self.loss[rest] = -torch.inf
            self.offer(rest, self.examples[rest])
        return AttackResult(
            examples=self.examples,
            fooled=self.fooled,
            distance=self.distance,
            prediction=self.prediction,
            loss=self.loss,
            verified=torch.ones_like(self.fooled),
            steps=self.steps,
            gradient_evaluations=self.gradients,
            evaluations=self.evaluations,
            zero_gradients=self.zero_gradients,
            nonfinite=self.nonfinite,
        )

    def _enter(self, samples: Tensor, points: Tensor, logits: Tensor) -> None:
        problem = self.problem
        classes = problem.classes[samples]
        finite = torch.isfinite(logits).all(dim=1)
        hit = problem.succeeded(logits, classes)
        margin = problem.margin(logits, classes).to(self.loss.dtype)
        away = torch.full_like(self.distance[samples], torch.inf)
        away[hit] = distance(points[hit].double() - problem.x[samples[hit]].double(), problem.threat.norm)
        closer = self._best_of_each(samples, -away, hit & (away < self.distance[samples]))
        self.fooled[samples[hit]] = True
        nearer = finite & ~self.fooled[samples] & (margin > self.loss[samples])
        better = closer | self._best_of_each(samples, margin, nearer)
        chosen = samples[better]
        self.examples[chosen] = points[better]
        self.loss[chosen] = margin[better]
        self.prediction[chosen] = logits.argmax(dim=1)[better]
        self._noted[chosen] = False
        self.distance[samples[closer]] = away[closer]
        self.nonfinite[samples[~finite]] = True
        self.count(samples, evaluations=torch.ones_like(samples))

    def _best_of_each(self, samples: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """The entries of the mask (B,) with the largest value for their sample; the first one in case of ties."""
        chosen = mask.nonzero().flatten()
        ranked = chosen[value[chosen].sort(stable=True, descending=True).indices]
        first = torch.full_like(self.steps, len(mask))
        order = torch.arange(len(ranked), device=ranked.device)
        first.scatter_reduce_(0, samples[ranked], order, "amin")
        best = torch.zeros_like(mask)
        best[ranked[first[samples[ranked]] == order]] = True
        return best
