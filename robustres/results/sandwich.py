"""The sandwich: no example that changes a prediction lies inside a radius certified for that prediction."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustres.results.schema import MEASURED_NORMS, NETWORK, empty_table


def of_network(certificates: pd.DataFrame) -> pd.DataFrame:
    """The radii of the network itself, the only ones that may be compared with attacks on the network."""
    return certificates[certificates["function"] == NETWORK]


class Sandwich:
    """The radii of a run, prepared for comparison with the examples of one attack after the other."""

    def __init__(self, certificates: pd.DataFrame) -> None:
        self._certified = of_network(certificates)
        self._reaches = [_Reach.of(norm, rows) for norm, rows in self._certified.groupby("norm", sort=False)]

    def violations(self, attacks: pd.DataFrame) -> pd.DataFrame:
        """Every pair of a certificate and an example of the same sample that lies inside the certified radius.

        An example counts when it changes the certified prediction; it is measured in the certificate's norm.
        Radii of functions other than the network are excluded: the examples fool the network.
        """
        fooled = attacks[attacks["fooled"].to_numpy()]
        # There are almost never any within reach, so that no pairs need to be formed.
        near = np.logical_or.reduce([np.zeros(len(fooled), bool), *(reach.holds(fooled) for reach in self._reaches)])
        return _violations(fooled[near], self._certified) if near.any() else _no_violations().copy()


def sandwich_violations(attacks: pd.DataFrame, certificates: pd.DataFrame) -> pd.DataFrame:
    """The violations of a run, as defined by `Sandwich`."""
    return Sandwich(certificates).violations(attacks)


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


@dataclass(frozen=True, eq=False)
class _Reach:
    """In one norm, sample by sample: the largest radius, and the prediction if all certificates agree on it.

    samples: (N,) ascending.
    """

    norm: str
    samples: NDArray[np.int64]
    radius: NDArray[np.float64]
    answer: NDArray[np.int64]
    unanimous: NDArray[np.bool_]

    @staticmethod
    def of(norm: Any, certificates: pd.DataFrame) -> "_Reach":
        """Build from the certificates in this norm."""
        samples, place = np.unique(certificates["index"].to_numpy(), return_inverse=True)
        prediction = certificates["prediction"].to_numpy()
        radius, unanimous = np.full(len(samples), -np.inf), np.full(len(samples), True)
        np.fmax.at(radius, place, certificates["radius"].to_numpy())
        answer = np.zeros(len(samples), dtype=prediction.dtype)
        answer[place] = prediction
        np.logical_and.at(unanimous, place, prediction == answer[place])
        return _Reach(norm, samples, radius, answer, unanimous)

    def holds(self, attacks: pd.DataFrame) -> NDArray[np.bool_]:
        """Which examples lie inside the radius and change a prediction certified there; all violations are among
        them.
        """
        index, norm = attacks["index"].to_numpy(), self.norm
        measured = attacks[norm] if norm in MEASURED_NORMS else attacks["distance"].where(attacks["norm"] == norm)
        found = np.searchsorted(self.samples, index).clip(max=len(self.samples) - 1)
        changed = (attacks["adversarial_prediction"].to_numpy() != self.answer[found]) | ~self.unanimous[found]
        near: NDArray[np.bool_] = (measured.to_numpy() < self.radius[found]) & (self.samples[found] == index) & changed
        return near
