"""Shift-invariant maps on a torus: the same kernels on images of the size of the torus, with circular padding."""

from dataclasses import replace
from functools import singledispatch

from robustres.certify.maps.convolution import Convolution, Padding
from robustres.certify.maps.coordinate_maps import Diagonal
from robustres.certify.maps.linear_map import Composition, Identity, LinearMap, Scaled, Sum, unanswered

Sides = tuple[int, int]


@singledispatch
def wrapped(map_: LinearMap, sides: Sides) -> LinearMap:
    """A map with a `passage`, on images of these sizes (divisible by the strides), padded circularly."""
    raise unanswered("wrapped", map_)


@wrapped.register
def _wrapped_identity(map_: Identity, sides: Sides) -> LinearMap:
    return Identity((map_.in_shape[0], *sides))


@wrapped.register
def _wrapped_scale(map_: Diagonal, sides: Sides) -> LinearMap:
    return replace(map_, in_shape=(map_.in_shape[0], *sides))


@wrapped.register
def _wrapped_multiple(map_: Scaled, sides: Sides) -> LinearMap:
    return replace(map_, map=wrapped(map_.map, sides))


@wrapped.register
def _wrapped_chain(map_: Composition, sides: Sides) -> LinearMap:
    parts: list[LinearMap] = []
    for part in map_.parts:
        parts.append(wrapped(part, sides))
        sides = (parts[-1].out_shape[1], parts[-1].out_shape[2])
    return Composition(parts)


@wrapped.register
def _wrapped_sum(map_: Sum, sides: Sides) -> LinearMap:
    return Sum([wrapped(term, sides) for term in map_.terms])


@wrapped.register
def _wrapped_convolution(map_: Convolution, sides: Sides) -> LinearMap:
    pads: Padding = tuple(_pads(map_, axis, side) for axis, side in enumerate(sides))  # type: ignore[assignment]
    return replace(map_, in_shape=(map_.in_shape[0], *sides), padding=pads, circular=True)


def _pads(map_: Convolution, axis: int, side: int) -> tuple[int, int]:
    """The padding that gives one value per stride."""
    before, stride = map_.padding[axis][0], map_.stride[axis]
    window = (map_.weight.shape[2 + axis] - 1) * map_.dilation[axis] + 1
    return before, max(0, stride * (side // stride - 1) + window - side - before)
