"""The bound of a whole network proved by the multipliers of a search: elimination and the largest remaining square."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robustres.certify.blocks.elimination import Eliminated, eliminate
from robustres.certify.blocks.first_layer import first_layer, first_layer_square
from robustres.certify.blocks.fixed_point import FixedPoint
from robustres.certify.blocks.front import FLOOR, Repair
from robustres.certify.blocks.increments import Increment, SectorLayer, on_device
from robustres.certify.graph.network import Node
from robustres.certify.proof.largest_singular_value import gram, largest_norm, proved_top
from robustres.numerics import gamma, rounded_up

EXACT_SIDE = 256  # up to this size the largest eigenvalue is computed, beyond it is estimated by Lanczos steps
LANCZOS_STEPS = 60
EXCESSES = (1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


def proved_bound(
    order: Sequence[Node],
    layers: Mapping[Node, Increment],
    point: FixedPoint,
    *,
    rows: Tensor | None = None,
    box: Tensor | None = None,
    repair: Repair | None = None,
    inner: Sequence[tuple[Node, Tensor]] = (),
) -> float:
    """The bound proved by the multipliers of a search; infinite if they prove none. inner: as in `eliminate`."""
    first = first_layer(order, layers) if box is None and not inner else None
    after = None if first is None else eliminate(order[order.index(first) :], layers, point, rows=rows, repair=repair)
    if first is not None and after is not None:
        placed = on_device(layers[first], after.rows.device)
        assert isinstance(placed, SectorLayer)
        square = first_layer_square(after, first, placed, point, repair or Repair())
        if math.isfinite(square):
            return rounded_up(math.sqrt(square), 8)
    found = eliminate(order, layers, point, rows=rows, repair=repair, inner=inner)
    if found is None:
        return math.inf
    least = 0.0 if repair is None else repair.loss
    if box is None:
        return l2_bound(found, least)
    assert point.weights is not None
    return box_bound(found, point.weights, box, least)


def l2_bound(found: Eliminated, excess: float = 0.0) -> float:
    """Upper bound on |output change| / |input change| in l2. excess: smallest relative margin tried in the proof."""
    square = found.factor * (largest_square(found.rows, excess) + found.slack)
    return rounded_up(math.sqrt(square), 8) if math.isfinite(square) else math.inf


def box_bound(found: Eliminated, weights: Tensor, box: Tensor, excess: float = 0.0) -> float:
    """Upper bound on |output change| for input changes within the box: |G d|^2 <= kappa sum w d^2, for any w > 0."""
    half = box.to(found.rows).flatten()
    moving = half > 0
    total = float(half.square().sum())
    w = weights.to(found.rows)[moving]
    w = w.clamp_min(1e-12 * float(w.max()) + 1e-290)
    root = w.rsqrt()
    # The columns are scaled with the stored root, not with w: w means 1 / root^2 from here on.
    kappa = largest_square(found.rows[..., moving] * root, excess) * (1 + gamma(8))
    spread = float((half[moving] / root).square().sum()) * (1 + gamma(len(half) + 16))
    square = found.factor * (kappa * spread + found.slack * total * (1 + gamma(len(half) + 8)))
    return rounded_up(math.sqrt(square), 8) if math.isfinite(square) else math.inf


def largest_square(rows: Tensor, least: float = 0.0) -> float:
    """Proved upper bound on the square of the largest singular value of every stored matrix (F, m, n); infinite if the
    proof fails.

    least: the smallest relative margin over the computed value of one matrix that is tried. At least FLOOR unless the
    matrices are 0, since smaller squares may underflow.
    """
    return max(_largest_square(rows, least), FLOOR) if bool(rows.any()) else 0.0


def _largest_square(rows: Tensor, least: float) -> float:
    if len(rows) > 1:
        norm = largest_norm(rows)
        return norm * norm * (1 + gamma(4))
    (matrix,) = rows
    product = gram((matrix.mH if len(matrix) <= matrix.shape[1] else matrix)[None])[0]
    norm = float(matrix.norm()) * (1 + gamma(2 * matrix.numel() + 8))
    square = norm * norm
    if square == 0 or not math.isfinite(square):
        return 0.0 if square == 0 else math.inf
    error = gamma(4 * (max(matrix.shape) + 2)) * square
    if len(product) <= EXACT_SIDE:
        top = float(torch.linalg.eigvalsh(product)[-1])
        return max(top, 0.0) + gamma(40 * len(product)) * square + error
    margins = [excess for excess in EXCESSES if excess >= least]
    return min(square, proved_top(product, error, margins=margins, steps=LANCZOS_STEPS) * (1 + gamma(4)))
