"""Gram iteration: an upper bound of the largest singular value after every step, by matrix products alone."""

import torch
from torch import Tensor

from robustres.numerics import gamma


def gram_iteration(matrices: Tensor, *, steps: int = 6) -> Tensor:
    """(F,) numbers at or above the largest singular values of the matrices (F, m, n); differentiable.

    With A_0 = H and A_{i+1} = A_i^H A_i, sigma(H) <= |A_i|_F^(2^-i) for every i, and the right side converges
    quadratically. Every iterate is divided by its Frobenius norm; sigma(A_i)^2 <= |A_i|_F^2 (sigma(A_{i+1}) + error)
    is then unrolled from the last step back to the first, each product charged with its rounding error.

    Source: Delattre, Barthelemy, Araujo and Allauzen (2023), Efficient Bound of Lipschitz Constant for Convolutional
    Layers by Gram Iteration, ICML.
    """
    current = matrices if matrices.shape[-1] <= matrices.shape[-2] else matrices.mH
    product_error = gamma(4 * (max(matrices.shape[-2:]) + 2))
    up = 1 + gamma(8 + matrices.shape[-1] * matrices.shape[-2])
    norms = []
    for _ in range(steps):
        norm = torch.linalg.matrix_norm(current, keepdim=True) * up
        safe = norm.clamp_min(torch.finfo(norm.dtype).tiny)
        norms.append(norm[:, 0, 0])
        current = current / safe
        current = current.mH @ current
    bound: Tensor = torch.linalg.matrix_norm(current) * up
    for norm in reversed(norms):
        bound = norm * torch.sqrt(bound + product_error) * up
    return bound
