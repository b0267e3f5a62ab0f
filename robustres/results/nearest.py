"""The adversarial examples of a run, whichever attack found them and in whichever norm."""

import math

import numpy as np
import pandas as pd

from robustres.results.schema import MEASURED_NORMS


def nearest_examples(attacks: pd.DataFrame, norm: str) -> pd.DataFrame:
    """The example nearest to each sample in this norm, index by sample: columns measured, adversarial_prediction."""
    fooled = attacks[attacks["fooled"]]
    measured = fooled[norm] if norm in MEASURED_NORMS else pd.Series(np.nan, index=fooled.index)
    # In the attack's own norm, the distance on which its verdict was based; other norms are measured on the same
    # example.
    fooled = fooled.assign(measured=fooled["distance"].where(fooled["norm"] == norm, measured))
    nearest = fooled.dropna(subset="measured").sort_values("measured", kind="stable").drop_duplicates("index")
    return nearest.set_index("index")[["measured", "adversarial_prediction"]]


def largest_attacked_eps(attacks: pd.DataFrame, norm: str) -> float:
    """The largest eps that was attacked in this norm: infinite for a minimum-norm attack, 0 without any attack."""
    eps = attacks.loc[attacks["norm"] == norm, "eps"]
    if eps.empty:
        return 0.0
    return math.inf if eps.isna().any() else float(eps.max())
