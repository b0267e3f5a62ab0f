"""Whether any input of a region gives a forbidden output: proved in float64 where the bounds suffice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor

from robustres.certify.local.attempt import Attempt
from robustres.certify.local.local_radii import everything
from robustres.certify.local.program import Program
from robustres.certify.local.proof import Proof, Question
from robustres.certify.local.sets import Region

# Share of the time for the search; a part of branch and bound is proved in about a sixth of the time it takes to find.
SEARCHED = 0.85


@dataclass(frozen=True, eq=False)
class Forbidden:
    """One case of forbidden outputs y: rows y <= limits, all of them at once. rows (A, outputs), limits (A,)."""

    rows: Tensor
    limits: Tensor


def excluded(
    program: Program,
    region: Region,
    cases: Sequence[Forbidden],
    *,
    deadline: float,
    clock: Callable[[], float] = monotonic,
) -> bool:
    """Whether provably none of the cases can occur on the region (of one sample), in exact arithmetic.

    A case is excluded where one of its rows stays above its limit. deadline: of `clock`, when to give up.
    """
    owner = [place for place, case in enumerate(cases) for _ in case.rows]
    members = [[row for row, place in enumerate(owner) if place == case] for case in range(len(cases))]
    rows, limits = torch.cat([case.rows for case in cases]), torch.cat([case.limits for case in cases])
    question = Question(region, rows, limits)
    begun = clock()
    until = begun + SEARCHED * (deadline - begun)
    made = Attempt(
        program,
        program.to(torch.float32),
        question,
        lambda: until - clock(),
        cases=members,
        rows_left=lambda: deadline - clock(),
    )
    made.narrowed() if region.norm == "l2" else made.linear()
    everything(made)
    if made.open:
        return False
    proved = Proof.of(program, question, made.evidence).whole
    return all(bool(proved[case].any()) for case in members)
