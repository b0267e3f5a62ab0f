"""Norms from linf to linf."""

import torch

from robustres.certify.maps.linear_map import LinearMap
from robustres.certify.maps.rounding import ALGORITHM_FACTOR, UNDERFLOW, largest_sum
from robustres.numerics import gamma, rounded_up, scaled_up

# Largest number of entries of an operator that is written out for the exact row sums of a composition.
DENSE_ENTRIES = 4_000_000


def linf_norm(map_: LinearMap) -> float:
    """The largest absolute row sum, rounded up; for compositions and sums it is exact if the matrix is small."""
    whole, exponent = map_.normalised()
    bound = largest_sum(whole, of_rows=True)
    if whole.cancels and whole.in_size * whole.out_size <= DENSE_ENTRIES:
        with torch.no_grad():
            sums = rounded_up(float(whole.dense().abs().sum(1).max()), whole.in_size)
        bound = min(bound, rounded_up(sums + gamma(ALGORITHM_FACTOR * whole.roundings) * bound + UNDERFLOW, 3))
    return scaled_up(bound, exponent)
