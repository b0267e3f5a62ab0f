"""Bounds on the error of a computed product with a map: gamma_n times the norm of the map of absolute values."""

import math
from weakref import WeakKeyDictionary

import torch

from robustres.certify.maps.linear_map import LinearMap
from robustres.numerics import gamma, rounded_up

ALGORITHM_FACTOR = 16  # allowance for convolution algorithms that do not sum the plain products
# Above the loss of maps with weights of about 1 (`normalised`) by products that underflow, each at most 2^-1074.
UNDERFLOW = 2.0**-900

_ABSOLUTE_NORMS: WeakKeyDictionary[LinearMap, float] = WeakKeyDictionary()


def product_error(map_: LinearMap) -> float:
    """A number at or above the spectral norm of (computed map - exact map), for a map that is `normalised`."""
    return gamma(ALGORITHM_FACTOR * map_.roundings) * absolute_norm(map_) * (1 + gamma(4)) + UNDERFLOW


def absolute_norm(map_: LinearMap) -> float:
    """At or above the norm of the map of absolute values, sqrt(|A|_1 |A|_inf); computed once per map."""
    if map_ not in _ABSOLUTE_NORMS:
        rows, columns = (math.sqrt(largest_sum(map_, of_rows=side)) for side in (True, False))
        _ABSOLUTE_NORMS[map_] = rounded_up(rows * columns, 3)
    return _ABSOLUTE_NORMS[map_]


def largest_sum(map_: LinearMap, *, of_rows: bool) -> float:
    """At or above the largest row, or column, sum of absolute values: the map of absolute values applied to ones."""
    absolute = map_.absolute()
    shape = map_.in_shape if of_rows else map_.out_shape
    ones = torch.ones(1, *shape, dtype=torch.float64, device=map_.device)
    with torch.no_grad():
        sums = absolute(ones) if of_rows else absolute.adjoint(ones)
    largest = float(sums.max()) if sums.numel() else 0.0
    if absolute.cancels:
        return rounded_up(largest, ALGORITHM_FACTOR * absolute.roundings) + UNDERFLOW
    return rounded_up(largest, ALGORITHM_FACTOR * absolute.roundings) if largest else 0.0
