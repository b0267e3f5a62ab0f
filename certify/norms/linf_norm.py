"""Norms from linf to linf, and the product of bounds along a path."""

import math

import torch

from robustres.certify.maps.linear_map import LinearMap
from robustres.certify.maps.rounding import ALGORITHM_FACTOR, UNDERFLOW, largest_sum
from robustres.certify.proof.bound import Bound, Guarantee
from robustres.numerics import gamma, product_up, rounded_up, scaled_up

# Largest number of entries of an operator that is written out for the exact row sums of a composition.
DENSE_ENTRIES = 4_000_000


def product(bounds: list[Bound]) -> Bound:
    """The bound of a composition of maps."""
    upper = product_up(bound.upper for bound in bounds)
    return Bound(0.0, upper, "product", all_hold(bounds), math.fsum(bound.seconds for bound in bounds))


def all_hold(bounds: list[Bound]) -> Guarantee:
    """The guarantee under which all of the bounds hold."""
    whole = Guarantee()
    for bound in bounds:
        whole = whole & bound.guarantee
    return whole


def linf_norm(map_: LinearMap) -> float:
    """The largest absolute row sum, rounded up; for compositions and sums it is exact if the matrix is small."""
    whole, exponent = map_.normalised()
    bound = largest_sum(whole, of_rows=True)
    if whole.cancels and whole.in_size * whole.out_size <= DENSE_ENTRIES:
        with torch.no_grad():
            sums = rounded_up(float(whole.dense().abs().sum(1).max()), whole.in_size)
        bound = min(bound, rounded_up(sums + gamma(ALGORITHM_FACTOR * whole.roundings) * bound + UNDERFLOW, 3))
    return scaled_up(bound, exponent)
