"""When to abandon a search: the forecast behind `give_up` and PGD's adaptive schedule.

The progress of a search is a number that must become positive. At regular marks, its improvement since the previous
mark is extrapolated linearly over the remaining steps and multiplied by a safety factor. Searches slow down over time,
so one that would not succeed even at several times its present speed is abandoned. This is a heuristic: an abandoned
search might have succeeded.
"""

import torch
from torch import Tensor

from robustres.attacks.search.engine import Slots

SAFETY = 4.0


def begin(slots: Slots) -> None:
    """Add the state of the forecast to new slots."""
    slots["mark"] = torch.full_like(slots["sample"], -torch.inf, dtype=torch.float64)
    slots["marked"] = torch.zeros_like(slots["sample"])


def set_mark(slots: Slots, mask: Tensor, progress: Tensor) -> None:
    """Restart the measurement for the slots in the mask; a progress of -inf makes the next mark count as the first."""
    slots["mark"] = torch.where(mask, progress.double(), slots["mark"])
    slots["marked"] = torch.where(mask, slots["age"] + 1, slots["marked"])


def hopeless(
    slots: Slots, progress: Tensor, *, steps: int, marks: int, least: int = 1, safety: float = SAFETY
) -> Tensor:
    """Mask (B,) of searches to abandon; `progress` (B,) must become positive, and `marks` are spread over all steps.

    least: minimum number of steps between two marks. safety: the multiple of its present speed credited to a search. No
    search is abandoned at its first mark, where there is nothing to compare with.
    """
    age = slots["age"] + 1
    taken = age - slots["marked"]
    judged = taken >= max(steps // marks, least)
    if not bool(judged.any()):
        return judged
    value = progress.double()
    forecast = value + safety * (value - slots["mark"]) / taken * (steps - age)
    set_mark(slots, judged, value)
    return judged & (forecast < 0)
