"""Norms from linf to linf, and the product of bounds along a path."""

import math

import torch
from torch import Tensor

from robustres.certify.maps.convolution import Convolution, TransposedConvolution
from robustres.certify.maps.coordinate_maps import Diagonal, Selection
from robustres.certify.maps.linear_map import (
    ChannelScale,
    Composition,
    Dense,
    Identity,
    LinearMap,
    Scaled,
    Separable,
    Sum,
)
from robustres.certify.maps.rounding import product_roundings
from robustres.certify.proof.bound import Bound, Guarantee
from robustres.numerics import rounded_up

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
    """The largest absolute row sum, rounded up; of compositions and sums exactly where small, else bounded by parts."""
    rows = _row_sums(map_)
    if rows is not None:
        return rounded_up(float(rows.max()), product_roundings(map_) + map_.in_size)
    if map_.in_size * map_.out_size <= DENSE_ENTRIES:
        return rounded_up(float(map_.dense().abs().sum(1).max()), 2 * product_roundings(map_) + map_.in_size)
    match map_:
        case Composition():
            return rounded_up(math.prod(linf_norm(part) for part in map_.parts), len(map_.parts))
        case Sum():
            return rounded_up(math.fsum(linf_norm(term) for term in map_.terms), len(map_.terms))
        case Scaled():
            return rounded_up(abs(map_.factor) * linf_norm(map_.map), 1)
    raise AssertionError(f"no row sums for {type(map_).__name__}")


def _row_sums(map_: LinearMap) -> Tensor | None:
    """Absolute row sums of a single map: the map of absolute values applied to ones."""
    match map_:
        case Identity():
            return torch.ones(1, dtype=torch.float64)
        case Selection():
            return (map_.index >= 0).to(torch.float64)
        case Diagonal():
            return map_.factors.abs()
        case ChannelScale():
            return map_.scale.abs()
        case Dense():
            return map_.matrix.abs().sum(1)
        case Separable():
            return map_.rows.abs().sum(1)[:, None] * map_.columns.abs().sum(1)
        case Convolution():
            return map_.weight.abs().sum((1, 2, 3))
        case TransposedConvolution():
            ones = torch.ones(1, *map_.in_shape, dtype=torch.float64, device=map_.device)
            absolute = TransposedConvolution(
                map_.weight.abs(),
                map_.in_shape,
                map_.stride,
                map_.padding,
                map_.output_padding,
                map_.dilation,
                map_.groups,
            )
            return absolute(ones)
    return None
