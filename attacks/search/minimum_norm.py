"""The common part of minimum-norm searches: keep the nearest adversarial point visited and return it at the end."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry.ball import copy_rows
from robustres.attacks.search.engine import Search, Slots


class MinimumNormSearch(Search):
    """A search over all of [0, 1] for the nearest example; subclasses define the moves.

    Where the threat has a finite eps and `stops_inside`, a sample retires as soon as an example lies in the ball.
    """

    keeps_misses = False

    def __init__(self, problem: Problem, *, steps: int, stops_inside: bool = False) -> None:
        self.problem, self.steps = problem, steps
        self.stops_inside = stops_inside and math.isfinite(problem.threat.eps)
        self.minimises = not self.stops_inside

    def begin(self, slots: Slots) -> None:
        slots["points"] = slots["x"].clone()
        slots["best"] = slots["x"].clone()
        slots["best_distance"] = torch.full_like(slots["sample"], torch.inf, dtype=slots["x"].dtype)
        slots["away"] = slots["best_distance"].clone()  # distance of points that fool the model, else infinite

    def loss(self, logits: Tensor, slots: Slots) -> Tensor:
        return self.problem.margin(logits, slots["classes"])

    def worth_offering(self, slots: Slots, hit: Tensor) -> Tensor:
        if bool(hit.any()):
            slots["away"] = self.lengths(slots["points"] - slots["x"]).masked_fill_(~hit, torch.inf)
        else:
            slots["away"] = torch.full_like(slots["best_distance"], torch.inf)
        return slots["away"] <= self.problem.threat.eps if self.stops_inside else torch.zeros_like(hit)

    def move(self, slots: Slots, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        away = slots["away"]
        closer = away < slots["best_distance"]
        slots["best_distance"] = torch.minimum(away, slots["best_distance"])
        copy_rows(slots["best"], slots["points"], closer.nonzero().flatten())
        hit = torch.isfinite(away)
        slots["points"] = self.next_points(slots, hit, loss, gradient)
        over = slots["age"] + 1 >= self.limit(slots)
        copy_rows(slots["points"], slots["best"], (over & torch.isfinite(slots["best_distance"])).nonzero().flatten())
        return over

    def limit(self, slots: Slots) -> int | Tensor:
        """Number of steps: one number for all slots, or one per slot (B,)."""
        return self.steps

    def lengths(self, difference: Tensor) -> Tensor:
        """Norm of each sample's difference, (B,), in the precision of the search."""
        flat = difference.flatten(1)
        if self.problem.threat.norm == "linf":
            return torch.maximum(-flat.amin(dim=1), flat.amax(dim=1))  # much faster than aminmax and vector_norm
        if self.problem.threat.norm == "l1":
            return flat.abs().sum(dim=1)  # three times as fast as vector_norm
        order = {"l2": 2.0, "l0": 0.0}[self.problem.threat.norm]
        length: Tensor = torch.linalg.vector_norm(flat, ord=order, dim=1)
        return length

    @abstractmethod
    def next_points(self, slots: Slots, hit: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """The next points to evaluate, given whether the present ones fool the model and the loss at them."""
