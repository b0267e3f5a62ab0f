"""Norms that follow from the structure of a map, or from a dense singular value decomposition of a small one."""

import math

import torch
from torch import Tensor

from robustres.certify.maps.convolution import Convolution, Transposed
from robustres.certify.maps.coordinate_maps import Diagonal, Selection
from robustres.certify.maps.linear_map import (
    Composition,
    Dense,
    Identity,
    LinearMap,
    Scaled,
    Sum,
    unanswered,
)
from robustres.certify.maps.rounding import absolute_norm, product_error
from robustres.certify.proof.largest_singular_value import largest_norm
from robustres.numerics import gamma, product_up, rounded_up

DENSE_SIDE = 768  # smaller side up to which a matrix is always decomposed
DENSE_ENTRIES = 4_000_000


def structural_norm(map_: LinearMap) -> float | None:
    """The norm, rounded up, if the structure alone gives it exactly; otherwise None."""
    match map_:
        case Identity():
            return 1.0
        case Diagonal():
            return float(map_.absolute().factors.max())
        case Selection():
            return float(map_.copies) if map_.copies <= 1 else rounded_up(math.sqrt(map_.copies), 1)
        case Scaled():
            inner = structural_norm(map_.map)
            return None if inner is None else rounded_up(product_up([abs(map_.factor), inner]), map_.seen)
        case Dense():
            return _blocks_norm(map_, map_.matrix[None], map_.seen)
        case Convolution() if _is_pointwise(map_):
            return _blocks_norm(map_, map_.weight.reshape(map_.groups, -1, map_.weight.shape[1]), map_.seen)
        case Convolution() | Transposed() | Composition() | Sum():
            return None
    raise unanswered("structural_norm", map_)


def _blocks_norm(map_: LinearMap, blocks: Tensor, seen: int) -> float:
    """The norm of a map with these diagonal blocks (groups, m, n), whose entries have `seen` relative roundings."""
    stored = largest_norm(blocks, method="svd" if min(blocks.shape[1:]) <= DENSE_SIDE else "cholesky")
    return rounded_up(stored + gamma(seen) * absolute_norm(map_), 1) if seen else stored


def dense_bound(map_: LinearMap) -> float:
    """The norm of the whole operator as a matrix, rounded up; its memory is in_size * out_size * 8 bytes."""
    with torch.no_grad():
        return rounded_up(largest_norm(map_.dense()[None], method="svd") + product_error(map_), 2)


def is_small(map_: LinearMap) -> bool:
    """Whether the dense matrix is decomposed in well under a second."""
    return min(map_.in_size, map_.out_size) <= DENSE_SIDE and map_.in_size * map_.out_size <= DENSE_ENTRIES


def _is_pointwise(convolution: Convolution) -> bool:
    """Whether it is a 1x1 kernel that reads at least one true pixel: the same matrix at every pixel, plus zeros."""
    unpadded = all(pads == (0, 0) for pads in convolution.padding)
    return tuple(convolution.weight.shape[2:]) == (1, 1) and (unpadded or not convolution.circular)
