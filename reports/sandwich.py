"""Sample by sample, the two numbers between which the true radius lies, and the accuracies that follow from them."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from robustres.reports.run import Run
from robustres.results import nearest_examples, of_network

Floats = npt.NDArray[np.float64]

OUTCOMES = ("certified", "open", "broken", "misclassified", "contradiction")


def per_sample(run: Run) -> pd.DataFrame:
    """One row per sample, index `index`, with for each norm NORM of the run

    radius_NORM: the largest certified radius of the network, 0 if nothing is certified;
    distance_NORM: the distance of the nearest adversarial example that any attack found, measured in this norm
        whichever norm the attack used; infinite if none was found, 0 if the clean image is misclassified;
    answer_NORM: the network's prediction on that example, -1 if there is none.
    """
    frame = run.tables["samples"].drop_duplicates("index").set_index("index").sort_index()
    for norm in run.norms:
        frame[f"radius_{norm}"] = _largest_radius(of_network(run.tables["certificates"]), norm).reindex(
            frame.index, fill_value=0.0
        )
        nearest = nearest_examples(run.tables["attacks"], norm).reindex(frame.index)
        distance = nearest["measured"].fillna(np.inf)
        frame[f"distance_{norm}"] = distance.where(frame["correct"], 0.0)
        frame[f"answer_{norm}"] = nearest["adversarial_prediction"].fillna(-1).astype("int64")
    return frame


def _largest_radius(certificates: pd.DataFrame, norm: str) -> "pd.Series[float]":
    return certificates[certificates["norm"] == norm].groupby("index")["radius"].max()


def outcome(samples: pd.DataFrame, norm: str, eps: float) -> "pd.Series[str]":
    """What is known about each sample at this eps: one of OUTCOMES, (N,)."""
    certified = samples["correct"] & (samples[f"radius_{norm}"] >= eps)
    broken = samples["correct"] & (samples[f"distance_{norm}"] <= eps)
    crossed = samples["correct"] & (samples[f"distance_{norm}"] < samples[f"radius_{norm}"])
    names = np.select(
        [~samples["correct"], crossed, certified, broken],
        ["misclassified", "contradiction", "certified", "broken"],
        "open",
    )
    return pd.Series(names, index=samples.index)


def certified_reach(samples: pd.DataFrame, norm: str) -> float:
    """The end of the certified curve: the radius that only 0.5 % of the correct samples exceed; 0 without any."""
    radius = samples.loc[samples["correct"], f"radius_{norm}"]
    return float(np.quantile(radius, 0.995)) if len(radius) else 0.0


def accuracy_curve(
    run: Run, samples: pd.DataFrame, norm: str, *, end: float | None = None, logarithmic: bool = False
) -> pd.DataFrame:
    """Clean, certified and attacked accuracy on a grid of eps up to `end`, or up to the largest eps at which something
    is known.

    logarithmic: uniform steps of the logarithm, from the smallest certified radius that is not an outlier.

    Columns eps, clean, certified (NaN if the run has no certificate in this norm), attacked (NaN beyond the largest
    attacked eps). `certified` is a lower bound and `attacked` an upper bound on the accuracy under the best attack.
    """
    correct = samples["correct"].to_numpy()
    total = max(1, len(samples))
    radius = np.sort(samples[f"radius_{norm}"].to_numpy()[correct])
    distance = np.sort(samples[f"distance_{norm}"].to_numpy()[correct])
    reach = run.attacked_up_to(norm)
    has_certificate = bool((of_network(run.tables["certificates"])["norm"] == norm).any())
    grid = _eps_grid(run.eps[norm], radius, distance, reach)
    if logarithmic:
        grid = _logarithmic(grid, radius)
    if end is not None:
        grid = np.unique(np.concatenate([np.linspace(0, end, 121), grid[grid <= end]]))
    certified = (len(radius) - np.searchsorted(radius, grid, side="left")) / total
    attacked = (len(distance) - np.searchsorted(distance, grid, side="right")) / total
    return pd.DataFrame(
        {
            "eps": grid,
            "clean": correct.sum() / total,
            "certified": certified if has_certificate else np.nan,
            "attacked": np.where((grid <= reach) & (reach > 0), attacked, np.nan),
        }
    )


def _eps_grid(counted: list[float], radius: Floats, distance: Floats, reach: float) -> Floats:
    """The grid on which the curves are drawn: uniform and logarithmic steps, each evaluated eps, and a point just
    before each of them.
    """
    found = distance[np.isfinite(distance)]
    ends = [1.1 * eps for eps in counted]
    ends += [float(np.quantile(radius, 0.995))] if len(radius) else []
    ends += [float(np.quantile(found, 0.98))] if len(found) and np.isinf(reach) else []
    end = max([end for end in ends if end > 0], default=1.0)
    even = np.linspace(0.0, end, 121)
    steps = [value for eps in counted for value in (eps * (1 - 1e-4), eps)]
    return np.unique(np.concatenate([even, steps]))


def _logarithmic(grid: Floats, radius: Floats) -> Floats:
    """From the eps at which the certified curve begins to fall, but over at most eight powers of ten."""
    positive, end = radius[radius > 0], float(grid[-1])
    start = min([end / 100, *([float(np.quantile(positive, 0.02)) / 2] if len(positive) else [])])
    start = max(start, end * 1e-8)
    return np.unique(np.concatenate([np.geomspace(start, end, 121), grid[grid >= start]]))
