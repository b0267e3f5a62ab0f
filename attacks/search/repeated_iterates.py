"""Iterates that repeat: a search without chance in its steps that is where it was can find nothing new.

A step that depends on the point alone maps equal points to equal points. So once the next point equals the present one,
or the one before it, every later point is known: the model has answered all of them. This is exact, no heuristic, as
long as the step's length and the loss stay the same; where one changes, `forget` makes the search start looking anew.
"""

import torch
from torch import Tensor

from robustres.attacks.search.engine import Slots

_NOWHERE = -1.0  # no image has such a pixel


def begin(slots: Slots) -> None:
    """Add the point before the present one to fresh slots that have their `points`."""
    slots["before"] = torch.full_like(slots["points"], _NOWHERE)


def forget(slots: Slots, mask: Tensor) -> None:
    """Compare nothing with what the slots in the mask have seen so far."""
    slots["before"][mask] = _NOWHERE


def advance(slots: Slots, points: Tensor) -> Tensor:
    """Go on to `points` (B, ...); returns the mask (B,) of slots whose orbit, of one point or two, is closed."""
    closed = _equal(points, slots["points"])
    closed |= _equal(points, slots["before"])
    slots["before"], slots["points"] = slots["points"], points
    return closed


def _equal(first: Tensor, second: Tensor) -> Tensor:
    """Which rows of (B, ...) are equal, (B,); looks at all pixels only where a few of them agree."""
    first, second = first.flatten(1), second.flatten(1)
    stride = max(first.shape[1] // 64, 1)
    equal = (first[:, ::stride] == second[:, ::stride]).all(dim=1)
    if len(rows := equal.nonzero().flatten()):
        equal[rows] = (first[rows] == second[rows]).all(dim=1)
    return equal
