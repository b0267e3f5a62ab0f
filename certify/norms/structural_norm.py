"""Maps whose norm is known by their structure or small enough for a dense singular value decomposition."""

import math

import torch

from robustres.certify.maps.convolution import Convolution
from robustres.certify.maps.coordinate_maps import Diagonal, Selection
from robustres.certify.maps.linear_map import ChannelScale, Dense, Identity, LinearMap, Scaled, Separable
from robustres.certify.maps.rounding import product_error
from robustres.certify.proof.largest_singular_value import largest_norm
from robustres.numerics import rounded_up

DENSE_SIDE = 768  # smaller side of a matrix that is decomposed without asking
DENSE_ENTRIES = 4_000_000


def structural_norm(map_: LinearMap) -> float | None:
    """The norm, rounded up, where the structure alone gives it exactly; None elsewhere."""
    match map_:
        case Identity():
            return 1.0
        case ChannelScale():
            return float(map_.scale.abs().max())
        case Diagonal():
            return float(map_.factors.detach().abs().max())
        case Selection():
            return float(map_.copies) if map_.copies <= 1 else rounded_up(math.sqrt(map_.copies), 1)
        case Scaled():
            inner = structural_norm(map_.map)
            return None if inner is None else rounded_up(abs(map_.factor) * inner, 1)
        case Separable():
            factors = [largest_norm(matrix[None], method="svd") for matrix in (map_.rows, map_.columns)]
            return rounded_up(math.prod(factors), 1)
        case Dense() if min(map_.matrix.shape) <= DENSE_SIDE:
            return largest_norm(map_.matrix[None], method="svd")
        case Dense():
            return largest_norm(map_.matrix[None], method="cholesky")
        case Convolution() if _is_pointwise(map_):
            blocks = map_.weight.reshape(map_.groups, -1, map_.weight.shape[1])
            return largest_norm(blocks, method="svd" if min(blocks.shape[1:]) <= DENSE_SIDE else "cholesky")
    return None


def dense_bound(map_: LinearMap) -> float:
    """The norm of the whole operator as a matrix, rounded up; its memory is in_size * out_size * 8 bytes."""
    with torch.no_grad():
        return rounded_up(largest_norm(map_.dense()[None], method="svd") + product_error(map_), 2)


def is_small(map_: LinearMap) -> bool:
    """Whether the dense matrix is decomposed in well under a second."""
    return min(map_.in_size, map_.out_size) <= DENSE_SIDE and map_.in_size * map_.out_size <= DENSE_ENTRIES


def _is_pointwise(convolution: Convolution) -> bool:
    """A 1x1 kernel that reads at least one true pixel: the same matrix at every pixel, padding adds zeros only."""
    unpadded = all(pads == (0, 0) for pads in convolution.padding)
    return tuple(convolution.weight.shape[2:]) == (1, 1) and (unpadded or convolution.padding_mode == "zeros")
