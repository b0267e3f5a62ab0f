"""When a search has no prospect of success left: the forecast behind `give_up`.

The progress of a search is a number that must become positive. At regular marks its improvement since the last mark is
extrapolated linearly over the steps that remain, times a safety factor. Searches slow down as they go, so a search
that would not arrive at several times its present speed is given up. This is a heuristic: it is off in the single
attacks; `Ensemble(exhaustive=False)` uses it.
"""

import torch
from torch import Tensor

from robustres.attacks.engine import Slots

SAFETY = 4.0


def begin(slots: Slots) -> None:
    """Add what the forecast remembers to fresh slots."""
    slots["mark"] = torch.full_like(slots["sample"], -torch.inf, dtype=torch.float64)


def hopeless(slots: Slots, progress: Tensor, *, steps: int, marks: int) -> Tensor:
    """Mask (B,) of searches to give up; `progress` (B,) must become positive, `marks` are spread over all steps.

    The first mark is never a reason: it has nothing to compare with.
    """
    every, age = max(steps // marks, 1), slots["age"] + 1
    judged = age % every == 0
    if not bool(judged.any()):
        return judged
    value = progress.double()
    forecast = value + SAFETY * (value - slots["mark"]) / every * (steps - age)
    slots["mark"] = torch.where(judged, value, slots["mark"])
    return judged & (forecast < 0)
