"""Repeated iterates: a search with deterministic steps that returns to an earlier point can find nothing new.

A step that depends on the point alone maps equal points to equal points. So once the next point equals the present one
or the one before it, every later point is known: the model has been evaluated at all of them. This is exact, not a
heuristic, as long as the step length and the loss stay the same; when either changes, `forget` resets the comparison.
"""

import torch
from torch import Tensor

from robustres.attacks.search.engine import Slots

_NOWHERE = -1.0  # no image has such a pixel


def begin(slots: Slots) -> None:
    """Add the previous point to new slots that already have their `points`."""
    slots["before"] = torch.full_like(slots["points"], _NOWHERE)


def forget(slots: Slots, mask: Tensor) -> None:
    """Discard the previous points of the slots in the mask."""
    slots["before"][mask] = _NOWHERE


def advance(slots: Slots, points: Tensor) -> Tensor:
    """Move on to `points` (B, ...); return the mask (B,) of slots whose orbit has closed after one or two points."""
    closed = _equal(points, slots["points"])
    closed |= _equal(points, slots["before"])
    slots["before"], slots["points"] = slots["points"], points
    return closed


def _equal(first: Tensor, second: Tensor) -> Tensor:
    """Mask (B,) of equal rows of (B, ...); compares all pixels only where a sample of them agrees."""
    first, second = first.flatten(1), second.flatten(1)
    stride = max(first.shape[1] // 64, 1)
    equal = (first[:, ::stride] == second[:, ::stride]).all(dim=1)
    if len(rows := equal.nonzero().flatten()):
        equal[rows] = (first[rows] == second[rows]).all(dim=1)
    return equal
