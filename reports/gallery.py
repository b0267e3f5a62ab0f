"""The gallery: samples with their nearest adversarial example, and its distance compared with the certified radius."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd

from robustres.reports.png import png_data_uri
from robustres.reports.records import plain
from robustres.reports.run import Run
from robustres.reports.sandwich import outcome

# Size limit of all images together, so that the page stays under 3 MB.
LARGEST_BYTES = 600_000
ORDERS = {"l0": 0, "l1": 1, "l2": 2, "linf": np.inf}


@dataclass(frozen=True)
class Card:
    """One sample in one norm. Images are PNG data URIs; `magnified` is grey where the perturbation is zero.

    radius: certified lower bound; distance: of the example shown; gap: distance - radius. The page rounds radii down
    and distances up.
    """

    index: int
    norm: str
    label: str
    label_number: int
    prediction: str
    answer: str
    outcome: str
    attack: str
    radius: float
    distance: float
    factor: float
    clean: str
    magnified: str
    adversarial: str

    @property
    def gap(self) -> float:
        """The length of the interval in which the true radius lies."""
        return self.distance - self.radius

    @property
    def radius_share(self) -> float:
        """Certified part of the attack distance, in per cent."""
        return 100 * min(1.0, self.radius / self.distance) if self.distance > 0 else 0.0

    @property
    def size(self) -> int:
        """Size of the images in bytes."""
        return len(self.clean) + len(self.magnified) + len(self.adversarial)


def gallery(run: Run, samples: pd.DataFrame) -> list[Card]:
    """One card per sample and norm for the examples that the run stored, as many as fit on the page."""
    room = LARGEST_BYTES // max(1, len(run.norms))
    cards: list[Card] = []
    for norm in run.norms:
        found = _cards(run, samples, norm)
        used = accumulate(card.size for card in found)
        cards += [card for card, size in zip(found, used, strict=True) if size <= room]
    return cards


def _cards(run: Run, samples: pd.DataFrame, norm: str) -> list[Card]:
    examples = run.tables["examples"]
    rows = examples[(examples["norm"] == norm) & examples["index"].isin(samples.index)].copy()
    if rows.empty or norm not in ORDERS:
        return []
    rows["distance"] = [_distance(row, norm) for row in rows.to_dict(orient="records")]
    rows = rows.sort_values(["distance"], kind="stable").drop_duplicates("index").sort_values("index")
    keys = ["index", "attack", "norm", "eps"]
    answers = run.tables["attacks"][[*keys, "adversarial_prediction"]].drop_duplicates(keys)
    rows = rows.merge(answers, on=keys, how="left")
    eps = run.headline_eps(norm)
    outcomes = outcome(samples.loc[rows["index"]], norm, 0.0 if eps is None else eps)
    return [
        _card(run, samples.loc[row["index"]], outcomes.loc[row["index"]], {str(k): v for k, v in row.items()})
        for row in rows.to_dict(orient="records")
    ]


def _pixels(row: Any, column: str) -> "np.ndarray[Any, np.dtype[np.float64]]":
    shape = (row["channels"], row["height"], row["width"])
    return np.frombuffer(row[column], dtype=np.float32).reshape(shape).astype(np.float64)


def _distance(row: Any, norm: str) -> float:
    difference = (_pixels(row, "adversarial") - _pixels(row, "clean")).ravel()
    return float(np.linalg.norm(difference, ORDERS[norm]))


def _card(run: Run, sample: "pd.Series[Any]", result: str, row: dict[str, Any]) -> Card:
    clean, adversarial = _pixels(row, "clean"), _pixels(row, "adversarial")
    difference = adversarial - clean
    largest = float(np.abs(difference).max())
    factor = 0.5 / largest if largest > 0 else 1.0
    names = run.class_names
    answer = plain(row["adversarial_prediction"])
    return Card(
        index=int(row["index"]),
        norm=str(row["norm"]),
        label=names[int(sample["label"])],
        label_number=int(sample["label"]),
        prediction=names[int(sample["prediction"])],
        answer="unknown" if answer is None else names[int(answer)],
        outcome=result,
        attack=str(row["attack"]),
        radius=float(sample[f"radius_{row['norm']}"]),
        distance=float(row["distance"]),
        factor=factor,
        clean=png_data_uri(clean),
        magnified=png_data_uri(0.5 + factor * difference),
        adversarial=png_data_uri(adversarial),
    )
