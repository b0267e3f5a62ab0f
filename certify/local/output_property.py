"""Whether any input of a box gives a forbidden output: proved in float64 where linear or quadratic bounds suffice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor

from robustres.certify.local.backward import Rows, pulled_back
from robustres.certify.local.intermediate import bounded
from robustres.certify.local.program import Program
from robustres.certify.local.quadratic import proved_change, searched, sectors
from robustres.certify.local.sets import Region


@dataclass(frozen=True, eq=False)
class Forbidden:
    """One case of forbidden outputs y: rows y <= limits, all of them at once. rows (A, outputs), limits (A,)."""

    rows: Tensor
    limits: Tensor


def excluded(program: Program, region: Region, cases: Sequence[Forbidden], *, deadline: float) -> list[bool]:
    """For each case whether it provably cannot occur on the region (of one sample), in exact arithmetic.

    A case is excluded where one of its rows stays above its limit. deadline: of `monotonic`, when to give up.
    """
    with torch.no_grad():
        bounds = bounded(program, region)
        rows = torch.cat([case.rows for case in cases])
        limits = torch.cat([case.limits for case in cases])
        whole = Rows(len(program.steps) - 1, rows, torch.zeros(len(rows), dtype=torch.long))
        least = pulled_back(program, whole, bounds.lines, bounds.sizes()).minimum(region)
        point = region.with_eps(0.0)
        centre = bounded(program, point)
        values = pulled_back(program, whole, centre.lines, centre.sizes()).minimum(point)
        slopes = sectors(program, bounds, centre)
    owner = torch.cat([torch.full((len(case.rows),), place) for place, case in enumerate(cases)])
    answers = [bool((least > limits)[owner == place].any()) for place in range(len(cases))]
    for row in (least - limits).argsort(descending=True).tolist():
        case = int(owner[row])
        if answers[case] or not float(values[row]) > float(limits[row]):
            continue
        if monotonic() > deadline:
            break
        found = searched(program, slopes, rows[row : row + 1], region)
        room = float(values[row]) - float(limits[row])
        change = proved_change(program, slopes, rows[row : row + 1], region, found)
        answers[case] = change < math.nextafter(room, -math.inf)
    return answers
