"""Scaling the two summands of every residual block of a given network: alpha S x + beta F(x), without retraining."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from robustres.certify.bounds.block_row import BlockRow
from robustres.data import ImageSet
from robustres.dynamics.measures.dissection import Dissection
from robustres.dynamics.measures.fit import share
from robustres.numerics import round_radius_down, rounded_up

# Subtracted from every margin: far more than the float64 rounding of the logits, which the sweep does not track.
ALLOWANCE = 1e-6


def scaled_upper(row: BlockRow, alpha: float, beta: float) -> float:
    """A bound on the Lipschitz constant of alpha S x + beta F(x) from the bounds of the block S x + F(x).

    The smallest of |alpha| |S| + |beta| K_F, |beta| K + |alpha - beta| |S| and |alpha| K + |beta - alpha| K_F, where K
    is the bound of the block; they correspond to three ways of writing the sum.

    >>> row = BlockRow("b", "residual (identity)", 1.2, 1.0, "joint", shortcut=1.0, branch=0.9)
    >>> [round(scaled_upper(row, alpha, beta), 6) for alpha, beta in ((1, 1), (0.5, 1), (1, 0))]
    [1.2, 1.05, 1.0]
    """
    size_a, size_b, apart = abs(alpha), abs(beta), abs(alpha - beta)
    ways = (
        size_a * row.shortcut + size_b * row.branch,
        size_b * row.upper + apart * row.shortcut,
        size_a * row.upper + apart * row.branch,
    )
    return rounded_up(min(way for way in ways if not math.isnan(way)), 4)


def scaled_logits(network: Dissection, images: Tensor, alpha: float, beta: float) -> Tensor:
    """Logits (N, classes) of images (N, ...) with every residual block scaled."""
    values = images.to(torch.float64)
    with torch.no_grad():
        for position, piece in enumerate(network.pieces):
            following = network.run(values, position, position + 1)
            if piece.is_residual:
                skip = network.skip(position, values)
                following = alpha * skip + beta * (following - skip)
            values = following
    return values


def scaling_sweep(
    network: Dissection, data: ImageSet, scales: Sequence[tuple[float, float]], *, eps: float
) -> pd.DataFrame:
    """One row per (alpha, beta): accuracy (measured), upper (bound of the whole network), median_radius and certified
    (share correct with l2 radius >= eps), from bounds. Nothing is retrained and no block is bounded again: the bounds
    of the unscaled network are combined, so a new certificate of the scaled network can only be better.
    """
    rows = []
    for alpha, beta in scales:
        logits = scaled_logits(network, data.images, alpha, beta)
        upper, growth = _bounds(network, alpha, beta)
        radius = _radii(network, logits, upper, growth)
        correct = logits.argmax(dim=1) == data.labels
        rows.append(
            {
                "alpha": alpha,
                "beta": beta,
                "accuracy": share(correct),
                "upper": upper,
                "certified": share(correct & (radius >= eps)),
                "median_radius": float(torch.where(correct, radius, 0.0).median()),
            }
        )
    return pd.DataFrame(rows)


def _bounds(network: Dissection, alpha: float, beta: float) -> tuple[float, float]:
    """Bounds on the scaled network, and on the factor by which scaling enlarges the bound of any part of it."""
    upper, growth = 1.0, 1.0
    for piece in network.pieces:
        own = piece.upper
        if piece.row is not None and piece.is_residual:
            own = scaled_upper(piece.row, alpha, beta)
            growth = rounded_up(growth * own / piece.upper, 2) if piece.upper > 0 else math.inf
        upper = rounded_up(upper * own, 1)
    return upper, growth


def _radii(network: Dissection, logits: Tensor, upper: float, growth: float) -> Tensor:
    """(N,): radii from the margins of pairs of classes, using the rows of the head if it is linear."""
    answers = logits.argmax(dim=1)
    constants = logits.new_full(logits.shape, rounded_up(math.sqrt(2) * upper, 2))
    if (head := network.report.head) is not None and math.isfinite(growth):
        body = rounded_up(head.body_l2 * growth, 1)
        pairs = torch.stack([head.pair_norms(label, "l2").cpu() for label in range(logits.shape[1])])
        constants = torch.minimum(constants, pairs[answers] * body * (1 + 2**-50))
    slack = ALLOWANCE * logits.abs().amax(dim=1, keepdim=True)
    ratio = (logits.gather(1, answers[:, None]) - logits - slack) / constants
    return round_radius_down(ratio.scatter(1, answers[:, None], math.inf).amin(dim=1))
