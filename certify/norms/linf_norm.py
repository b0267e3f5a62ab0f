"""Norms from linf to linf, and the product of bounds along a path."""

import math

import torch

from robustres.certify.maps.linear_map import LinearMap
from robustres.certify.maps.rounding import ALGORITHM_FACTOR, largest_sum
from robustres.certify.proof.bound import Bound, Guarantee
from robustres.numerics import gamma, rounded_up

# Entries of a dense operator that is written out to get the row sums of a composition exactly.
DENSE_ENTRIES = 4_000_000


def product(bounds: list[Bound]) -> Bound:
    """The bound of maps one after the other."""
    upper = rounded_up(math.prod(bound.upper for bound in bounds), len(bounds)) if len(bounds) > 1 else bounds[0].upper
    return Bound(0.0, upper, "product", all_hold(bounds), math.fsum(bound.seconds for bound in bounds))


def all_hold(bounds: list[Bound]) -> Guarantee:
    """The guarantee under which every one of the bounds holds."""
    whole = Guarantee()
    for bound in bounds:
        whole = whole & bound.guarantee
    return whole


def linf_norm(map_: LinearMap) -> float:
    """The largest absolute row sum, rounded up; where maps are composed or added, exact where the matrix is small."""
    bound = largest_sum(map_, of_rows=True)
    if not map_.cancels or map_.in_size * map_.out_size > DENSE_ENTRIES:
        return bound
    with torch.no_grad():
        sums = rounded_up(float(map_.dense().abs().sum(1).max()), map_.in_size)
    return min(bound, rounded_up(sums + gamma(ALGORITHM_FACTOR * map_.roundings) * bound, 3))
