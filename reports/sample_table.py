"""Every sample in one row: the wide table for scripts, and the compact one that the page sorts and filters."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from robustres.reports.records import plain
from robustres.reports.run import Run
from robustres.reports.sandwich import outcome

MOST_ROWS = 10_000


def wide_samples(run: Run, samples: pd.DataFrame) -> pd.DataFrame:
    """Label, prediction, margin; per norm the largest radius and nearest example; per attack and eps its distance.

    Columns ATTACK_NORM_EPS_distance are infinite if that attack found nothing; CERTIFICATE_NORM_radius are 0 if nothing
    is certified.
    """
    names = np.array(run.class_names, dtype=object)
    wide = samples.copy()
    wide.insert(1, "label_name", names[samples["label"].to_numpy()] if len(samples) else [])
    for (attack, norm, eps), rows in run.tables["attacks"].groupby(["attack", "norm", "eps"], dropna=False):
        budget = "minimum" if eps != eps else f"{eps:.6g}"
        wide[f"{attack}_{norm}_{budget}_distance"] = _aligned(rows, "distance", wide.index, np.inf)
    for (certificate, norm), rows in run.tables["certificates"].groupby(["certificate", "norm"]):
        wide[f"{certificate}_{norm}_radius"] = _aligned(rows, "radius", wide.index, 0.0)
    return wide.reset_index()


def _aligned(rows: pd.DataFrame, column: str, index: "pd.Index[int]", missing: float) -> "pd.Series[float]":
    return rows.drop_duplicates("index").set_index("index")[column].reindex(index, fill_value=missing)


def page_samples(run: Run, samples: pd.DataFrame) -> dict[str, Any]:
    """The first MOST_ROWS samples column by column, four digits: radii rounded down, distances rounded up."""
    shown = samples.head(MOST_ROWS)
    page: dict[str, Any] = {
        "shown": len(shown),
        "total": len(samples),
        "classes": run.class_names,
        "index": shown.index.tolist(),
        "label": shown["label"].tolist(),
        "prediction": shown["prediction"].tolist(),
        "norms": {},
    }
    for norm in run.norms:
        eps = run.headline_eps(norm)
        page["norms"][norm] = {
            "eps": eps,
            "outcome": outcome(shown, norm, 0.0 if eps is None else eps).tolist(),
            "radius": [plain(value) for value in _rounded(shown[f"radius_{norm}"], np.floor).tolist()],
            "distance": [plain(value) for value in _rounded(shown[f"distance_{norm}"], np.ceil).tolist()],
        }
    return page


def _rounded(values: "pd.Series[float]", direction: np.ufunc, digits: int = 4) -> npt.NDArray[np.float64]:
    numbers = np.array(values, dtype=np.float64)
    usable = np.isfinite(numbers) & (numbers > 0)
    places = digits - 1 - np.floor(np.log10(numbers[usable]))
    scaled = direction(numbers[usable] * 10.0**places)
    numbers[usable] = [float(f"{value:.{digits}g}") for value in scaled * 10.0**-places]
    return numbers
