"""The final linear layer, kept apart: the logits of two classes differ less than two times the whole network allows."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from robustres.certify.maps.linear_map import Composition, Dense, LinearMap
from robustres.certify.maps.rounding import UNDERFLOW, product_error
from robustres.certify.norms.linf_norm import linf_norm
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.certify.proof.largest_singular_value import times_power_of_two
from robustres.numerics import gamma, rounded_up

MOST_ENTRIES = 2**24  # of a map that is written out, one row for each class
MOST_KEPT = 2**24  # numbers that are kept of the pairs that were asked for


@dataclass(frozen=True, eq=False)
class Head:
    """logits = map(features) + bias, with bounds of the Lipschitz constant from the input to the features.

    body_l2, body_linf: bounds of the features' Lipschitz constant in l2 and linf.
    """

    map: LinearMap
    body_l2: float
    body_linf: float
    _kept: dict[tuple[int, str], Tensor] = field(init=False, default_factory=dict, repr=False)

    def pair_norms(self, label: int, norm: str) -> Tensor:
        """|w_label - w_j| for every class j (classes,), rounded up, in the norm dual to `norm` of the features.

        The numbers are computed once for each class that is asked for, in time and memory of classes x features.
        """
        if (label, norm) not in self._kept:
            if (len(self._kept) + 1) * self.map.out_size > MOST_KEPT:
                self._kept.clear()
            self._kept[label, norm] = self._pair_norms(label, norm)
        return self._kept[label, norm]

    def _pair_norms(self, label: int, norm: str) -> Tensor:
        rows, error, before, exponent = self._rows
        apart = rows - rows[label]
        lengths = apart.norm(dim=1) if norm == "l2" else apart.abs().sum(dim=1)
        error *= 2 if norm == "l2" else 2 * rounded_up(math.sqrt(rows.shape[1]), 1)
        sizes = (lengths * (1 + gamma(rows.shape[1] + 8)) + error) * (before[norm] * (1 + gamma(4)))
        sizes = torch.nextafter(times_power_of_two(sizes, exponent), torch.tensor(math.inf).to(sizes))
        sizes[label] = 0.0
        return sizes

    @cached_property
    def _rows(self) -> tuple[Tensor, float, dict[str, float], int]:
        """Rows (classes, n) and the error of each, both times 2^exponent; the norms of the map whose output they read.

        A map that is too large to be written out is read from its last matrix on, where it ends in one.
        """
        map_, exponent = self.map.normalised()
        before = {"l2": 1.0, "linf": 1.0}
        parts = map_.parts if isinstance(map_, Composition) else (map_,)
        if len(parts) > 1 and isinstance(parts[-1], Dense) and map_.in_size * map_.out_size > MOST_ENTRIES:
            rest, map_ = Composition(parts[:-1]), parts[-1]
            before = {"l2": spectral_norm(rest, lower_steps=1).upper, "linf": linf_norm(rest)}
        exact = isinstance(map_, Dense) and map_.seen == 0
        with torch.no_grad():
            return map_.dense().detach(), UNDERFLOW if exact else product_error(map_), before, exponent
