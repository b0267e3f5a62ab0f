"""When a search has no prospect of success left: the forecast behind `give_up` and PGD's adaptive schedule.

The progress of a search is a number that must become positive. At regular marks its improvement since the last mark is
extrapolated linearly over the steps that remain, times a safety factor. Searches slow down as they go, so a search
that would not arrive at several times its present speed is given up. This is a heuristic: what it gives up might have
succeeded.
"""

import torch
from torch import Tensor

from robustres.attacks.search.engine import Slots

SAFETY = 4.0


def begin(slots: Slots) -> None:
    """Add what the forecast remembers to fresh slots."""
    slots["mark"] = torch.full_like(slots["sample"], -torch.inf, dtype=torch.float64)
    slots["marked"] = torch.zeros_like(slots["sample"])


def set_mark(slots: Slots, mask: Tensor, progress: Tensor) -> None:
    """Measure what follows from here, for the slots in the mask; a progress of -inf makes the next mark a first one."""
    slots["mark"] = torch.where(mask, progress.double(), slots["mark"])
    slots["marked"] = torch.where(mask, slots["age"] + 1, slots["marked"])


def hopeless(
    slots: Slots, progress: Tensor, *, steps: int, marks: int, least: int = 1, safety: float = SAFETY
) -> Tensor:
    """Mask (B,) of searches to give up; `progress` (B,) must become positive, `marks` are spread over all steps.

    least: the number of steps between two marks is no smaller. safety: how many times its present speed is allowed for.
    The first mark is never a reason: it has nothing to compare with.
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
