"""The final linear layer, treated separately, which gives tighter bounds for the difference of two logits."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from robustres.certify.graph.network import Node
from robustres.certify.maps.linear_map import Composition, Dense, LinearMap
from robustres.certify.maps.nonlinear import LogSoftmax
from robustres.certify.maps.rounding import UNDERFLOW, product_error
from robustres.certify.norms.linf_norm import linf_norm
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.certify.proof.largest_singular_value import times_power_of_two
from robustres.numerics import gamma, rounded_up

MOST_ENTRIES = 2**24  # largest number of entries of a map that is written out, with one row per class
MOST_KEPT = 2**24  # largest number of cached values for requested pairs


def before_log_softmax(output: Node) -> Node:
    """The logits of a network that ends in a logarithmic softmax, which leaves all of their differences as they are."""
    ends = isinstance(output.piece, LogSoftmax) and len(output.shape) == 1
    return output.inputs[0] if ends else output


@dataclass(frozen=True, eq=False)
class Head:
    """logits = map(features) + bias, with bounds on the Lipschitz constant from the input to the features.

    body_l2, body_linf: bounds on the Lipschitz constant of the features in l2 and linf.
    """

    map: LinearMap
    body_l2: float
    body_linf: float
    _kept: dict[tuple[int, str], Tensor] = field(init=False, default_factory=dict, repr=False)

    def pair_norms(self, label: int, norm: str) -> Tensor:
        """|w_label - w_j| for every class j (classes,), rounded up, in the norm dual to `norm` of the features.

        The values are computed once per requested class, in time and memory proportional to classes x features.
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
        """Rows (classes, n) and the error of each, both times 2^exponent, and the norms of the map before them.

        If a map is too large to be written out but ends in a matrix, the rows are those of that matrix.
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
