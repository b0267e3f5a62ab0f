"""The same measures for several runs: which run is best, and which differences are significant."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from robustres.reports.accuracies import ALL_ATTACKS
from robustres.reports.mcnemar import holm, mcnemar_p
from robustres.reports.run import Run
from robustres.reports.wilson import wilson_interval
from robustres.results import NETWORK, certified_mask, robust_mask

Mask = npt.NDArray[np.bool_]
Key = tuple[str, str, str | None, float | None]


@dataclass(frozen=True)
class Cell:
    """One run's share in one measure. p: against the best run, Holm-corrected; None for the best run, or if it cannot
    be tested.
    """

    accuracy: float
    low: float
    high: float
    best: bool
    p: float | None


@dataclass(frozen=True)
class Measure:
    """One row of the comparison; a cell is None if that run did not measure it."""

    kind: str
    name: str
    norm: str | None
    eps: float | None
    cells: tuple[Cell | None, ...]


def same_samples(runs: Sequence[Run]) -> bool:
    """Whether the runs used the same images, so that their outcomes can be paired."""
    hashes = {str(run.manifest["data"].get("sha256")) for run in runs}
    labels = [run.tables["samples"].set_index("index")["label"].sort_index() for run in runs]
    return len(hashes) == 1 and all(labels[0].equals(other) for other in labels[1:])


def compare_measures(runs: Sequence[Run], samples: Sequence[pd.DataFrame]) -> list[Measure]:
    """Every measure that at least two runs share, and every attack at an eps for which the accuracy under all attacks
    is shown, so that no such row summarises attacks whose rows are hidden.
    """
    masks = [_masks(run, frame) for run, frame in zip(runs, samples, strict=True)]
    paired = same_samples(runs)
    keys = list(dict.fromkeys(key for run_masks in masks for key in run_masks))
    shared = [key for key in keys if sum(key in run_masks for run_masks in masks) > 1]
    together = {key[2:] for key in shared if key[1] == ALL_ATTACKS}
    shared += [key for key in keys if key not in shared and key[0] == "attack" and key[2:] in together]
    order = {"clean": 0, "attack": 1, "certificate": 2}
    shared.sort(key=lambda key: (order[key[0]], str(key[2]), key[3] or 0.0, key[1] == ALL_ATTACKS, key[1]))
    return _corrected([_measure(key, [run_masks.get(key) for run_masks in masks], paired) for key in shared])


def _masks(run: Run, samples: pd.DataFrame) -> dict[Key, Mask]:
    """Which samples count as correct in each measure of the run, in the order of the sample index."""
    correct = samples["correct"]
    masks: dict[Key, Mask] = {("clean", "clean images", None, None): correct.to_numpy()}
    groups: Any = run.tables["attacks"].groupby(["attack", "norm", "eps"], dropna=False)
    for (name, norm, eps), rows in groups:
        for budget in run.eps[norm] if math.isnan(eps) else [eps]:  # one run of a minimum-norm attack serves every eps
            masks["attack", name, norm, budget] = robust_mask(rows, correct, budget).to_numpy()
    for norm in run.norms:
        for eps in (eps for eps in run.eps[norm] if eps <= run.attacked_up_to(norm)):
            survived = correct & (samples[f"distance_{norm}"] > eps)
            masks["attack", ALL_ATTACKS, norm, eps] = survived.to_numpy()
    certificates: Any = run.tables["certificates"].groupby(["certificate", "function", "norm"])
    for (name, function, norm), rows in certificates:
        of = "" if function in (NETWORK, name) else f" of {function}"
        for eps in run.eps[norm]:
            key: Key = ("certificate", f"{name} certificate{of}", norm, eps)
            masks[key] = certified_mask(rows, samples["label"], eps).to_numpy()
    return masks


def _measure(key: Key, masks: Sequence[Mask | None], paired: bool) -> Measure:
    shares = [None if mask is None or not len(mask) else float(mask.mean()) for mask in masks]
    known = [share for share in shares if share is not None]
    top = max(known, default=0.0)
    # If all are equal, none is best.
    leaders = [share == top and top > min(known) for share in shares]
    leader = masks[leaders.index(True)] if any(leaders) else None
    cells: list[Cell | None] = []
    for mask, share, best in zip(masks, shares, leaders, strict=True):
        if mask is None or share is None:
            cells.append(None)
            continue
        low, high = wilson_interval(int(mask.sum()), len(mask))
        tested = paired and leader is not None and not best
        p = mcnemar_p(leader, mask) if tested and leader is not None else None
        cells.append(Cell(share, low, high, best, p))
    kind, name, norm, eps = key
    return Measure(kind, name, norm, eps, tuple(cells))


def _corrected(measures: list[Measure]) -> list[Measure]:
    """The p-values of the whole table, corrected for multiple testing."""
    raw = [cell.p for measure in measures for cell in measure.cells if cell is not None and cell.p is not None]
    adjusted = iter(holm(raw))
    corrected = []
    for measure in measures:
        cells = tuple(
            cell if cell is None or cell.p is None else replace(cell, p=next(adjusted)) for cell in measure.cells
        )
        corrected.append(replace(measure, cells=cells))
    return corrected
