"""The table for papers: one row per model with clean, attacked and certified accuracy at each eps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from robustres.reports.formats import at_least, attack_text, share_text
from robustres.reports.run import Run

MOST_COLUMNS = 4


@dataclass(frozen=True)
class ModelRow:
    """A model's accuracies as strings. pairs: (norm, eps) -> attacked by all attacks together, and certified.

    best: those that no other row exceeds, "clean" or (norm, eps, side); empty if there is only one row.
    """

    name: str
    clean: str
    pairs: dict[tuple[str, float], tuple[str, str]]
    attacks: tuple[str, ...]
    best: frozenset[Any] = frozenset()


def model_columns(runs: Sequence[Run]) -> list[tuple[str, float]]:
    """Norm and eps of each pair of columns: those requested for the runs, as many as fit the width of a page."""
    pairs = [(norm, eps) for run in runs for norm in run.asked for eps in run.eps[norm]]
    return sorted(dict.fromkeys(pairs), key=lambda pair: [norm for norm, _ in pairs].index(pair[0]))[:MOST_COLUMNS]


def model_row(run: Run, samples: pd.DataFrame) -> ModelRow:
    """One run's row. Certified shares are rounded down; a dash if nothing was computed."""
    pairs = {}
    guaranteed = {row["norm"] for row in run.summary["certificates"] if row["function"] == "network"}
    for norm in run.asked:
        for eps in run.eps[norm]:
            correct = samples["correct"]
            survived = float((correct & (samples[f"distance_{norm}"] > eps)).mean()) if len(samples) else 0.0
            certified = float((correct & (samples[f"radius_{norm}"] >= eps)).mean()) if len(samples) else 0.0
            attacked = eps <= run.attacked_up_to(norm)
            pairs[norm, eps] = (
                share_text(survived) if attacked else "–",
                at_least(certified) if norm in guaranteed else "–",
            )
    names = tuple(attack_text(str(name)) for name in run.tables["attacks"]["attack"].unique())
    return ModelRow(run.name, share_text(run.summary["clean"]["accuracy"]), pairs, names)


def with_best(rows: Sequence[ModelRow]) -> list[ModelRow]:
    """The rows, each with the entries in which it is best or ties for best."""
    cells = [
        {"clean": row.clean} | {(*column, side): pair[side] for column, pair in row.pairs.items() for side in (0, 1)}
        for row in rows
    ]
    numbers = [{key: float(text[:-2]) for key, text in row.items() if text != "–"} for row in cells]
    top: dict[Any, float] = {}
    for row in numbers:
        top |= {key: max(value, top.get(key, value)) for key, value in row.items()}
    equal = {key for key in top if len({row.get(key) for row in numbers}) == 1}  # if all are equal, none is best
    return [
        replace(row, best=frozenset(key for key, value in found.items() if value == top[key] and key not in equal))
        for row, found in zip(rows, numbers, strict=True)
    ]
