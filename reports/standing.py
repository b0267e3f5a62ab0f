"""The status of the samples at one eps: how many are certified, broken, misclassified and open."""

from dataclasses import dataclass

import pandas as pd

from robustres.reports.run import Run
from robustres.reports.sandwich import OUTCOMES, outcome


@dataclass(frozen=True)
class Standing:
    """name: of the run in a comparison, else empty.

    counts: samples by outcome, in the order of OUTCOMES; contradictions only if there are any.
    """

    name: str
    norm: str
    eps: float
    counts: dict[str, int]
    total: int


def standings(run: Run, samples: pd.DataFrame, *, name: str = "") -> list[Standing]:
    """One for each norm, at the eps to which the sentences refer."""
    found = []
    for norm in run.asked:
        eps = run.headline_eps(norm)
        if eps is not None and len(samples):
            counted = outcome(samples, norm, eps).value_counts()
            shown = [kind for kind in OUTCOMES if kind != "contradiction" or kind in counted.index]
            counts = {kind: int(counted.get(kind, 0)) for kind in shown}
            found.append(Standing(name, norm, eps, counts, len(samples)))
    return found
