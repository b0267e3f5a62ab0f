"""Proof that a Hermitian matrix is positive definite, by a successful floating-point Cholesky factorisation."""

import torch
from torch import Tensor

from robustres.numerics import gamma


def definiteness_slack(size: int) -> float:
    """The shift, relative to the trace, under which a completed factorisation proves definiteness.

    Rump (2006), Verification of positive definiteness, BIT 46: if the Cholesky factorisation of A - c I runs to
    completion in floating-point arithmetic with c >= gamma_{n+1} / (1 - gamma_{n+1}) trace(A), then A is positive
    semidefinite. A complex operation counts as four real ones, and the subtraction of c itself is covered by doubling.
    """
    g = gamma(4 * (size + 2))
    return 2 * g / (1 - g)


def proved_definite(matrices: Tensor, *, error: float = 0.0) -> Tensor:
    """(F,) bool: True if the Hermitian matrix (F, n, n) is proved positive semidefinite; False proves nothing.

    error: the true matrix may differ from the stored one by this much in spectral norm.
    """
    size = matrices.shape[-1]
    diagonal = matrices.diagonal(dim1=-2, dim2=-1).real
    shift = definiteness_slack(size) * diagonal.abs().sum(-1) + 2 * error
    shifted = matrices.clone()
    shifted.diagonal(dim1=-2, dim2=-1).sub_(shift[:, None])
    factor, info = torch.linalg.cholesky_ex(shifted)
    pivots = factor.diagonal(dim1=-2, dim2=-1).real
    proved: Tensor = (info == 0) & torch.isfinite(pivots).all(-1) & (pivots > 0).all(-1)
    return proved
