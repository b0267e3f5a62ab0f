"""A linear model of the logits, fitted to random points of the whole ball: an attack on gradients that mislead.

Where the logits carry fine ripples, every gradient follows the ripples, and averages of gradients converge slowly: the
slope of a ripple grows with its frequency, its height does not. Differences over the whole ball see the height alone.
So the model is evaluated at random corners of the ball (linf), or at random directions of length eps (l2), constant on
square cells of the image; least squares give each logit's slope per cell; the corner or direction at which the fitted
lead of a class over the label is largest becomes the next point. Later rounds redraw a part of the signs of that point.
"""

import torch
from torch import Tensor

from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem, in_parts
from robustres.attacks.geometry import ball
from robustres.attacks.geometry.randomness import sample_keys, uniform

FLIPPED = (0.5, 0.3, 0.2)  # share of the signs that are redrawn in each round
CELLS = 8  # per side of the image, at most
RIDGE = 0.1  # added to the normal equations, as a share of the mean square of the changes


def offer(problem: Problem, ledger: Ledger, chosen: Tensor, *, queries: int, seed: int, batch_size: int) -> None:
    """Offer one point per round for each chosen sample (mask of N); costs `queries` + 3 evaluations, no gradients."""
    rows = (chosen & ~ledger.fooled).nonzero().flatten()
    for part in in_parts(rows, max(batch_size // queries, 1)):
        _Fit(problem, part, queries // len(FLIPPED), seed, batch_size).run(ledger)


class _Fit:
    """The samples `rows` (B,) of the problem, with `count` random points each in every round."""

    def __init__(self, problem: Problem, rows: Tensor, count: int, seed: int, batch_size: int) -> None:
        self.problem, self.rows, self.count, self.batch_size = problem, rows, count, batch_size
        self.x, self.classes = problem.x[rows].to(problem.dtype), problem.classes[rows]
        self.low, self.high = ball.pixel_bounds(self.x, problem.threat.eps)
        self.keys = sample_keys(seed, problem.index[rows], torch.zeros_like(rows))
        height, width = self.x.shape[-2:]
        self.sides = (-(-height // CELLS), -(-width // CELLS))
        self.grid = (self.x.shape[1], -(-height // self.sides[0]), -(-width // self.sides[1]))

    def run(self, ledger: Ledger) -> None:
        signs = self.x.new_ones(len(self.rows), 1, *self.grid)
        changes: list[Tensor] = []
        answers: list[Tensor] = []
        for number, share in enumerate(FLIPPED):
            drawn = uniform(self.keys, (self.count, *self.grid), draw=number, dtype=self.x.dtype)
            points = self._points(torch.where(drawn < share, -signs, signs))
            changes.append(self._per_cell(points))
            answers.append(self._answers(points))
            best = self._best(torch.cat(changes, dim=1), torch.cat(answers, dim=1))
            points = self._points(best)[:, 0]
            ledger.count(self.rows, evaluations=torch.full_like(self.rows, self.count))
            ledger.offer(self.rows, points)
            signs = best.sign()

    def _points(self, cells: Tensor) -> Tensor:
        """Points (B, n, C, H, W) of the ball in the directions (B, n, *grid)."""
        height, width = self.x.shape[-2:]
        wide = cells.repeat_interleave(self.sides[0], -2).repeat_interleave(self.sides[1], -1)[..., :height, :width]
        x, eps = self.x[:, None], self.problem.threat.eps
        if self.problem.threat.norm == "linf":
            return (x + eps * wide).clamp(self.low[:, None], self.high[:, None])
        length = torch.linalg.vector_norm(wide, dim=(2, 3, 4), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        points: Tensor = (x + wide * (eps / length)).clamp(0, 1)
        return points

    def _per_cell(self, points: Tensor) -> Tensor:
        """Mean change (B, n, cells) of each cell."""
        change = (points - self.x[:, None]).flatten(0, 1)
        pooled = torch.nn.functional.avg_pool2d(change, self.sides, ceil_mode=True)
        return pooled.reshape(*points.shape[:2], -1)

    def _answers(self, points: Tensor) -> Tensor:
        parts = in_parts(points.flatten(0, 1), self.batch_size)
        logits = torch.cat([self.problem.search_answers(part) for part in parts])
        return logits.to(points.dtype).nan_to_num(0.0, 0.0, 0.0).reshape(*points.shape[:2], -1)

    def _best(self, changes: Tensor, answers: Tensor) -> Tensor:
        """The direction (B, 1, *grid) in which the fitted lead is largest, from changes (B, n, d), logits (B, n, K)."""
        centre, mean = changes.mean(dim=1, keepdim=True), answers.mean(dim=1, keepdim=True)
        centred = changes - centre
        squares = centred.transpose(1, 2) @ centred
        ridge = RIDGE * changes.square().mean(dim=(1, 2)) * changes.shape[1]
        squares.diagonal(dim1=1, dim2=2).add_(ridge.clamp(min=torch.finfo(changes.dtype).tiny)[:, None])
        slopes = torch.linalg.solve(squares, centred.transpose(1, 2) @ (answers - mean)).transpose(1, 2)
        own = self.classes[:, None, None]
        slopes, offset = (values - values.gather(1, own.expand(-1, 1, values.shape[2])) for values in (slopes, mean.mT))
        if self.problem.targeted:
            slopes, offset = -slopes, -offset  # lead of the target over each class, the least of which counts
        directions = (slopes.sign() if self.problem.threat.norm == "linf" else slopes).unflatten(2, self.grid)
        reached = self._per_cell(self._points(directions)) - centre
        lead = offset.squeeze(2) + torch.linalg.vecdot(slopes, reached)
        lead = (-lead if self.problem.targeted else lead).scatter(1, self.classes[:, None], -torch.inf)
        rank = lead.argmax(dim=1)
        best: Tensor = directions[torch.arange(len(rank), device=rank.device), rank][:, None]
        return best
