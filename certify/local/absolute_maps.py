"""The map of absolute values of each kind of linear map, and how many roundings its product may have seen."""

from dataclasses import replace
from functools import singledispatch

from robustres.certify.maps.convolution import Convolution, TransposedConvolution, padded_convolution
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

# Roundings that stored weights may have seen when scales were folded into them.
FOLDED = 16


@singledispatch
def absolute(map_: LinearMap) -> LinearMap:
    """A map whose entries are at or above the absolute values of the map's; NotImplementedError for an unknown kind."""
    raise NotImplementedError(f"has no absolute values ({type(map_).__name__})")


@absolute.register(Identity)
@absolute.register(Selection)
def _same(map_: LinearMap) -> LinearMap:
    return map_


@absolute.register
def _dense(map_: Dense) -> LinearMap:
    return Dense(map_.matrix.abs(), map_.in_shape, map_.out_shape)


@absolute.register
def _scale(map_: ChannelScale) -> LinearMap:
    return ChannelScale(map_.scale.abs(), map_.in_shape)


@absolute.register
def _diagonal(map_: Diagonal) -> LinearMap:
    return Diagonal(map_.factors.abs())


@absolute.register
def _separable(map_: Separable) -> LinearMap:
    return Separable(map_.rows.abs(), map_.columns.abs(), map_.channels)


@absolute.register
def _convolution(map_: Convolution) -> LinearMap:
    if map_.padding_mode != "zeros":
        return absolute(padded_convolution(map_))
    return replace(map_, weight=map_.weight.abs())


@absolute.register
def _transposed(map_: TransposedConvolution) -> LinearMap:
    return replace(map_, weight=map_.weight.abs())


@absolute.register
def _scaled(map_: Scaled) -> LinearMap:
    return Scaled(abs(map_.factor), absolute(map_.map))


@absolute.register
def _sum(map_: Sum) -> LinearMap:
    return Sum(tuple(absolute(term) for term in map_.terms))


@absolute.register
def _composition(map_: Composition) -> LinearMap:
    return Composition(tuple(absolute(part) for part in map_.parts))


def roundings(map_: LinearMap) -> int:
    """Roundings that one coordinate of the product goes through, with those that the stored weights have seen."""
    return product_roundings(map_) + FOLDED
