"""The inverse of x + F(x) by fixed-point iteration, with an a posteriori error bound."""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from robustres.errors import InputError


def fixed_point_inverse(
    branch: Callable[[Tensor], Tensor],
    y: Tensor,
    contraction: float,
    *,
    iterations: int = 60,
    truth: Tensor | None = None,
) -> pd.DataFrame:
    """Iterate x <- y - F(x) from x = y.

    branch: F with Lipschitz constant at most `contraction` < 1 (a bound, as Banach's theorem requires). y: (N, D).
    Returns one row per iteration with the maxima over the samples of: step; bound, K/(1 - K) times the step, which is
    at or above the distance to the solution up to rounding; error, the distance to `truth` if given.

    >>> trace = fixed_point_inverse(lambda x: 0.5 * x, torch.tensor([[3.0]], dtype=torch.float64), 0.5)
    >>> bool(trace["bound"].iloc[-1] < 1e-12)
    True
    """
    if not 0 <= contraction < 1:
        raise InputError(f"the iteration is only guaranteed to converge for a branch with K_F < 1, got {contraction:g}")
    x, rows = y, []
    with torch.no_grad():
        for iteration in range(1, iterations + 1):
            following = y - branch(x)
            step = torch.linalg.vector_norm(following - x, dim=1)
            # Rounding error: a few units in the last place of y in every step, amplified by 1/(1 - K).
            rounding = 64 * torch.finfo(y.dtype).eps * (1 + torch.linalg.vector_norm(y, dim=1))
            bound = (contraction * step + rounding) / (1 - contraction)
            x = following
            error = torch.full_like(step, torch.nan) if truth is None else torch.linalg.vector_norm(x - truth, dim=1)
            rows.append(
                {
                    "iteration": iteration,
                    "step": float(step.max()),
                    "bound": float(bound.max()),
                    "error": float(error.max()),
                }
            )
    return pd.DataFrame(rows)
