"""First-order distance of each wrong class: which classes to aim at, and in which order."""

import torch
from torch import Tensor

from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem, in_parts
from robustres.attacks.geometry import losses
from robustres.attacks.geometry.hyperplane import nearest_on_hyperplane
from robustres.numerics import distance


def class_distances(problem: Problem, ledger: Ledger, targets: Tensor, batch_size: int) -> Tensor:
    """Estimates (N, T) of the distance at which each of the targets (N, T) overtakes the label, in the threat's norm.

    It is the distance of the nearest image in [0, 1] at which the difference of the two logits, linearised at the
    image, is zero. Infinite for samples that are already fooled, and if there is no such image. Costs one gradient per
    sample and target.
    """
    away = torch.full(targets.shape, torch.inf, dtype=torch.float64, device=targets.device)
    left = (~ledger.fooled).nonzero().flatten()
    for rank in range(targets.shape[1]):
        for rows in in_parts(left, batch_size):
            labels, aims = problem.classes[rows], targets[rows, rank]
            _, lead, gradient, vanished = problem.gradient(
                problem.x[rows].to(problem.dtype),
                lambda logits, labels=labels, aims=aims: losses.difference(logits, labels, aims),  # type: ignore[misc]
            )
            away[rows, rank] = _distance(problem, rows, lead, gradient)
            once = torch.ones_like(rows)
            ledger.count(rows, evaluations=once, gradients=once, zero_gradients=vanished.long())
    return away


def _distance(problem: Problem, rows: Tensor, lead: Tensor, gradient: Tensor) -> Tensor:
    norm = problem.threat.norm
    move = nearest_on_hyperplane(problem.x[rows].to(problem.dtype), gradient, -lead, norm)
    reached = lead + torch.linalg.vecdot(gradient.flatten(1), move.flatten(1)) > 0.01 * lead
    return distance(move.double(), norm).where(reached, torch.inf)


def nearest_first(targets: Tensor, away: Tensor) -> tuple[Tensor, Tensor]:
    """The targets (N, T) and their distances, sorted by distance in ascending order.

    >>> order, away = nearest_first(torch.tensor([[7, 8, 9]]), torch.tensor([[0.3, 0.1, 5.0]]))
    >>> order.tolist()
    [[8, 7, 9]]
    """
    order = away.argsort(dim=1, stable=True)
    return targets.gather(1, order), away.gather(1, order)
