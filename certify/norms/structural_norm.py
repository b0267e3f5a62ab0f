"""Norms that follow from the structure of a map, or from a dense singular value decomposition of a small one."""

import math
from functools import singledispatch

import torch

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


@singledispatch
def structural_norm(map_: LinearMap) -> float | None:
    """The norm, rounded up, if the structure alone gives it exactly; otherwise None."""
    raise unanswered("structural_norm", map_)


@structural_norm.register
def _identity_norm(map_: Identity) -> float | None:
    return 1.0


@structural_norm.register
def _diagonal_norm(map_: Diagonal) -> float | None:
    return float(map_.absolute().factors.max())


@structural_norm.register
def _selection_norm(map_: Selection) -> float | None:
    return float(map_.copies) if map_.copies <= 1 else rounded_up(math.sqrt(map_.copies), 1)


@structural_norm.register
def _scaled_norm(map_: Scaled) -> float | None:
    inner = structural_norm(map_.map)
    return None if inner is None else rounded_up(product_up([abs(map_.factor), inner]), map_.seen)


@structural_norm.register
def _dense_norm(map_: Dense) -> float | None:
    stored = largest_norm(map_.matrix[None], method="svd" if min(map_.matrix.shape) <= DENSE_SIDE else "cholesky")
    return rounded_up(stored + _weight_error(map_, map_.seen), 1) if map_.seen else stored


@structural_norm.register
def _convolution_norm(map_: Convolution) -> float | None:
    if not _is_pointwise(map_):
        return None
    blocks = map_.weight.reshape(map_.groups, -1, map_.weight.shape[1])
    stored = largest_norm(blocks, method="svd" if min(blocks.shape[1:]) <= DENSE_SIDE else "cholesky")
    return rounded_up(stored + _weight_error(map_, map_.seen), 1) if map_.seen else stored


@structural_norm.register(Transposed)
@structural_norm.register(Composition)
@structural_norm.register(Sum)
def _no_structural_norm(map_: LinearMap) -> float | None:
    return None


def _weight_error(map_: LinearMap, seen: int) -> float:
    """Upper bound on the norm of the error of the stored weights."""
    return gamma(seen) * absolute_norm(map_) if seen else 0.0


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
