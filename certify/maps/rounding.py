"""How far a map's computed product can be from the exact one: gamma_n times the norm of the map of absolute values."""

import math

import torch

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
from robustres.numerics import gamma

ALGORITHM_FACTOR = 16  # room for convolution algorithms that do not add the plain products


def product_error(map_: LinearMap) -> float:
    """A number at or above the spectral norm of (computed map - exact map)."""
    return gamma(ALGORITHM_FACTOR * product_roundings(map_)) * absolute_norm(map_)


def absolute_norm(map_: LinearMap) -> float:
    """At or above the norm of the map with every weight replaced by its absolute value, sqrt(|A|_1 |A|_inf)."""
    match map_:
        case Identity():
            return 1.0
        case Dense():
            return _matrix_norm(map_.matrix.detach().abs())
        case ChannelScale():
            return float(map_.scale.detach().abs().max())
        case Diagonal():
            return float(map_.factors.detach().abs().max())
        case Selection():
            return math.sqrt(map_.copies)
        case Separable():
            return _matrix_norm(map_.rows.detach().abs()) * _matrix_norm(map_.columns.detach().abs())
        case Convolution():
            kernel = map_.weight.detach().abs().sum((2, 3))
            columns = kernel.reshape(map_.groups, -1, kernel.shape[1]).sum(1)
            norm = math.sqrt(float(kernel.sum(1).max())) * math.sqrt(float(columns.max()))
            return norm if map_.padding_mode == "zeros" else norm * absolute_norm(map_.pad())
        case TransposedConvolution():
            return absolute_norm(map_.forward_map)
        case Scaled():
            return abs(map_.factor) * absolute_norm(map_.map)
        case Sum():
            return sum(absolute_norm(term) for term in map_.terms)
        case Composition():
            return math.prod(absolute_norm(part) for part in map_.parts)
    return float(torch.linalg.matrix_norm(map_.dense().detach()))


def product_roundings(map_: LinearMap) -> int:
    """Roundings that one output coordinate of the product goes through."""
    match map_:
        case Identity():
            return 0
        case Dense():
            return map_.matrix.shape[1] + map_.matrix.shape[0] + 2
        case Separable():
            return sum(map_.in_shape[1:]) + sum(map_.out_shape[1:]) + 4
        case Convolution():
            pads = 0 if map_.padding_mode == "zeros" else product_roundings(map_.pad())
            return 2 * math.prod(map_.weight.shape[2:]) * max(map_.weight.shape[:2]) + 4 + pads
        case TransposedConvolution():
            return product_roundings(map_.forward_map)
        case Scaled():
            return product_roundings(map_.map) + 1
        case Sum():
            return max(product_roundings(term) for term in map_.terms) + len(map_.terms)
        case Composition():
            return sum(product_roundings(part) for part in map_.parts)
        case ChannelScale() | Diagonal():
            return 1
        case Selection():
            return map_.copies
    return map_.in_size + map_.out_size


def _matrix_norm(absolute: torch.Tensor) -> float:
    return math.sqrt(float(absolute.sum(0).max())) * math.sqrt(float(absolute.sum(1).max()))
