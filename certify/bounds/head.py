"""The final linear layer, kept apart: the logits of two classes differ less than two times the whole network allows."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.maps.linear_map import LinearMap
from robustres.certify.maps.rounding import product_error
from robustres.numerics import gamma


@dataclass(frozen=True, eq=False)
class Head:
    """logits = map(features) + bias, with bounds of the Lipschitz constant from the input to the features.

    body_l2, body_linf: bounds of the features' Lipschitz constant in l2 and linf.
    """

    map: LinearMap
    body_l2: float
    body_linf: float

    def pair_norms(self, label: int, norm: str) -> Tensor:
        """|w_label - w_j| for every class j (classes,), rounded up, in the norm dual to `norm` of the features."""
        classes = self.map.out_size
        choose = torch.eye(classes, dtype=torch.float64, device=self.map.device)
        rows = self.map.adjoint((choose[label] - choose).reshape(-1, *self.map.out_shape)).flatten(1)
        norms = rows.norm(dim=1) if norm == "l2" else rows.abs().sum(dim=1)
        error = 2 * product_error(self.map) * (1 if norm == "l2" else math.sqrt(rows.shape[1]))
        return norms * (1 + gamma(rows.shape[1] + 8)) + error
