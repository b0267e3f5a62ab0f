"""The sandwich: no example that changes an answer lies inside a radius certified for that answer."""

from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustres.results.schema import MEASURED_NORMS, SMOOTHED, empty_table


def of_network(certificates: pd.DataFrame) -> pd.DataFrame:
    """The radii of the network itself, which alone may be held against attacks on the network."""
    return certificates[~certificates["certificate"].astype(str).str.startswith(SMOOTHED)]


def sandwich_violations(attacks: pd.DataFrame, certificates: pd.DataFrame) -> pd.DataFrame:
    """Every pair of a certificate and an example of the same sample that lies inside the certified radius.

    An example counts when it changes the certified prediction; it is measured in the certificate's norm. Certificates
    of a smoothed classifier are left out: the examples fool the network, which is another function.
    """
    certified, fooled = of_network(certificates), attacks[attacks["fooled"]]
    near = _within_reach(fooled, certified)
    return _violations(fooled[near], certified) if near.any() else _no_violations().copy()


def _violations(attacks: pd.DataFrame, certificates: pd.DataFrame) -> pd.DataFrame:
    pairs = certificates.merge(attacks, on="index", suffixes=("", "_attack"))
    measured = pairs["distance"].where(pairs["norm"] == pairs["norm_attack"])
    for norm in MEASURED_NORMS:
        measured = measured.where(pairs["norm"] != norm, pairs[norm])
    changed = pairs["adversarial_prediction"] != pairs["prediction"]
    return pairs.assign(measured=measured)[changed & (measured < pairs["radius"])]


@cache
def _no_violations() -> pd.DataFrame:
    return _violations(empty_table("attacks"), empty_table("certificates"))


def _within_reach(attacks: pd.DataFrame, certificates: pd.DataFrame) -> NDArray[np.bool_]:
    """Which examples lie inside the largest radius of their sample in some norm and change an answer certified there.

    Among them are all that can be violations. Almost always there are none, so that no pairs need be made.
    """
    near = np.zeros(len(attacks), dtype=bool)
    index, answer = attacks["index"].to_numpy(), attacks["adversarial_prediction"].to_numpy()
    for norm in certificates["norm"].unique():
        rows = certificates[certificates["norm"] == norm]
        samples, place = np.unique(rows["index"].to_numpy(), return_inverse=True)
        radius, prediction = rows["radius"].to_numpy(), rows["prediction"].to_numpy()
        reach = np.full(len(samples), -np.inf)
        np.fmax.at(reach, place, radius)
        unanimous = np.full(len(samples), True)
        first = np.zeros(len(samples), dtype=prediction.dtype)
        first[place] = prediction
        np.logical_and.at(unanimous, place, prediction == first[place])
        measured = attacks[norm] if norm in MEASURED_NORMS else attacks["distance"].where(attacks["norm"] == norm)
        found = np.searchsorted(samples, index).clip(max=len(samples) - 1)
        changed = (answer != first[found]) | ~unanimous[found]
        near |= (samples[found] == index) & (measured.to_numpy() < reach[found]) & changed
    return near
