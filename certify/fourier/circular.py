"""Shift-invariant maps on a torus: the same kernels on images of the size of the torus, with circular padding."""

from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

from robustres.certify.maps.convolution import Convolution, Padding, Transposed
from robustres.certify.maps.coordinate_maps import Diagonal
from robustres.certify.maps.linear_map import Composition, Identity, LinearMap, Scaled, Sum, unanswered

Sides = tuple[int, int]


def wrapped(map_: LinearMap, sides: Sides) -> LinearMap:
    """A map with a `passage`, on images of these sizes (divisible by the strides), padded circularly."""
    match map_:
        case Identity():
            return Identity((map_.in_shape[0], *sides))
        case Diagonal():
            return replace(map_, in_shape=(map_.in_shape[0], *sides))
        case Scaled():
            return replace(map_, map=wrapped(map_.map, sides))
        case Composition():
            parts: list[LinearMap] = []
            for part in map_.parts:
                parts.append(wrapped(part, sides))
                sides = (parts[-1].out_shape[1], parts[-1].out_shape[2])
            return Composition(parts)
        case Sum():
            return Sum([wrapped(term, sides) for term in map_.terms])
        case Convolution():
            weight = _reaching(map_)
            pads: Padding = (_pads(map_, weight, 0, sides[0]), _pads(map_, weight, 1, sides[1]))
            return replace(map_, weight=weight, in_shape=(map_.in_shape[0], *sides), padding=pads, circular=True)
        case Transposed(map=Convolution(stride=stride)):
            return Transposed(wrapped(map_.map, (sides[0] * stride[0], sides[1] * stride[1])))
    raise unanswered("wrapped", map_)


def _reaching(map_: Convolution) -> Tensor:
    """The kernel with as many zeros at its end as its window needs to reach beyond the padding before it."""
    axes = zip(map_.padding, map_.weight.shape[2:], map_.dilation, strict=True)
    rows, columns = (max(0, 1 - taps - -before // dilation) for (before, _), taps, dilation in axes)
    return pad(map_.weight, (0, columns, 0, rows))


def _pads(map_: Convolution, weight: Tensor, axis: int, side: int) -> tuple[int, int]:
    """The padding that gives one value per stride."""
    before, stride = map_.padding[axis][0], map_.stride[axis]
    window = (weight.shape[2 + axis] - 1) * map_.dilation[axis] + 1
    return before, max(0, stride * (side // stride - 1) + window - side - before)
