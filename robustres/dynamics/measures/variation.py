"""Total variation along segments: how rough a path becomes when a block is applied to it."""

import torch
from torch import Tensor

from robustres.errors import InputError


def segments(starts: Tensor, ends: Tensor, points: int) -> Tensor:
    """(S, points, ...): the straight lines from starts (S, ...) to ends (S, ...), both included."""
    if points < 2:
        raise InputError(f"a segment needs at least 2 points, got {points}")
    time = torch.linspace(0, 1, points, dtype=starts.dtype).reshape(1, -1, *[1] * (starts.ndim - 1))
    return starts[:, None] + time * (ends - starts)[:, None]


def total_variation(path: Tensor) -> Tensor:
    """(S,): the length of the polygon through path (S, points, ...), a lower estimate of the length of the curve.

    >>> total_variation(torch.tensor([[[0.0], [1.0], [0.0]]])).item()
    2.0
    """
    length: Tensor = torch.linalg.vector_norm(path.diff(dim=1).flatten(2), dim=2).sum(dim=1)
    return length
