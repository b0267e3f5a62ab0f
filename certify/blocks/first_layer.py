"""The first activation of a network and the linear map before it, eliminated together at the end.

If v (z - v) >= 0 at the activation and z = W x, then |H v|^2 <= kappa |x|^2 for every change x of the input, if

    2T - H^H H - T W W^H T / kappa  >=  0,

since |H v|^2 <= 2 v^T T W x - v^T (2T - H^H H) v <= 2 v^T T W x - |W^H T v|^2 / kappa <= kappa |x|^2. One factorisation
of the size of the layer proves kappa, and W W^H is cheap for a convolution; the rows at the input and their Gram matrix
are never formed.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robustres.certify.blocks.elimination import Eliminated
from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.blocks.front import (
    UNIT,
    UP,
    Pivot,
    Repair,
    adjoint_rows,
    candidates,
    diagonal_of,
    frobenius,
)
from robustres.certify.blocks.increments import Increment, SectorLayer
from robustres.certify.graph.network import Linear, Node, Source
from robustres.certify.maps.linear_map import LinearMap
from robustres.certify.maps.rounding import ALGORITHM_FACTOR, absolute_norm
from robustres.certify.proof.largest_singular_value import gram
from robustres.numerics import gamma

NARROW = 256  # neurons up to which the eigenvalues at the input cost nothing
KRYLOV_STEPS = 8
EXCESSES = (1e-4, 3e-4, 1e-3, 1e-2)  # tried above the Ritz value


def first_layer(order: Sequence[Node], layers: Mapping[Node, Increment]) -> Node | None:
    """The activation alone on the linear map that alone reads the input, if it is wide and has slopes [0, b]."""
    if len(order) < 4 or not isinstance(order[0].piece, Source) or not isinstance(order[1].piece, Linear):
        return None
    layer = layers.get(order[2])
    if not isinstance(layer, SectorLayer) or layer.mixing is not None or bool(layer.lower.any()):
        return None
    readers = [[node for node in order if place in node.inputs] for place in order[:2]]
    alone = readers == [[order[1]], [order[2]]]
    return order[2] if alone and int((layer.width > 0).sum()) > NARROW else None


@torch.no_grad()
def first_layer_square(
    found: Eliminated,
    node: Node,
    layer: SectorLayer,
    point: FixedPoint,
    repair: Repair,
) -> float:
    """Upper bound of |rows . change of the output|^2 / |change of the input|^2, infinite if it is not proved.

    found: the network after the activation `node`. point: of the search for multipliers, with changes of the
    input near the steepest ones.
    """
    (linear,) = node.inputs
    assert isinstance(linear.piece, Linear)
    free = layer.width > 0
    d = layer.width[free]
    hidden = (found.rows * layer.width)[..., free]
    rounding = 2 * UNIT * frobenius(hidden)
    demand = gram(hidden)
    diagonal_of(demand).add_((found.slack * d * d + rounding * rounding / repair.loss) * UP)
    for multipliers in candidates(node, demand, layer, point, repair):
        t = multipliers[layer.tie[free]]
        pivot = Pivot.of(demand, t, hidden.shape[1], repair.spare)
        if pivot is not None:
            break
    else:
        return math.inf
    value = _ritz_value(linear.piece.map, free, t, pivot, point.change)
    if value == 0:  # underflow
        return math.inf
    products, error = _products(linear.piece.map, free)
    products.mul_(t[:, None]).mul_(t)
    for excess in (excess for excess in EXCESSES if excess >= repair.loss):
        square = value * (1 + excess)
        whole = demand + products / square
        root = (2 * t - diagonal_of(whole)[0]).clamp_min(0).rsqrt()
        scaled = error / square * float((root * t).square().max()) * UP
        if Pivot.of(whole, t, hidden.shape[1] + linear.piece.map.in_size, 0.0, error=scaled) is not None:
            return square * found.factor * (1 + repair.loss) * (1 + gamma(8)) * UP
    return math.inf


def _products(map_: LinearMap, free: Tensor) -> tuple[Tensor, float]:
    """W W^H of the rows in `free`, and a bound of its error in the spectral norm."""
    rows = adjoint_rows(map_, torch.eye(map_.out_size, dtype=torch.float64, device=free.device)[free])
    products = torch.cat(
        [map_(part.reshape(-1, *map_.in_shape)).flatten(1)[:, free] for part in torch.split(rows, 128)]
    )
    steep = absolute_norm(map_)
    size = math.sqrt(len(rows)) * steep
    error = gamma(4 * ALGORITHM_FACTOR * (map_.roundings + map_.forward_roundings) + 16) * steep * size * UP
    return products, error


def _ritz_value(map_: LinearMap, free: Tensor, t: Tensor, pivot: Pivot, change: Tensor) -> float:
    """An estimate of the largest eigenvalue of W^H T P^-1 T W, from a few block Krylov steps."""

    def applied(x: Tensor) -> Tensor:
        """To the columns of (n, r)."""
        right = map_(x.mT.reshape(-1, *map_.in_shape)).flatten(1).mT[free] * (t * pivot.root[0])[:, None]
        half = torch.linalg.solve_triangular(pivot.factor[0], right, upper=False)
        whole = torch.linalg.solve_triangular(pivot.factor[0].mH, half, upper=True)
        image = t.new_zeros(map_.out_size, x.shape[1])
        image[free] = whole * (t * pivot.root[0])[:, None]
        return map_.adjoint(image.mT.reshape(-1, *map_.out_shape)).reshape(-1, map_.in_size).mT

    block = torch.linalg.qr(change.to(t).flatten(1).mT)[0]
    basis, images = block, applied(block)
    for _ in range(KRYLOV_STEPS):
        block = torch.linalg.qr(torch.cat((basis, images[:, -block.shape[1] :]), dim=1))[0][:, basis.shape[1] :]
        if not block.numel():  # the whole space
            break
        basis, images = torch.cat((basis, block), dim=1), torch.cat((images, applied(block)), dim=1)
    return max(0.0, float(torch.linalg.eigvalsh(basis.mT @ images)[-1]))
