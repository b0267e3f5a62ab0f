"""Jacobians at samples: full matrices for small states, Jacobian-vector products for large ones."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Jacobians of larger states are not decomposed.
LARGEST_STATE = 1024

Function = Callable[[Tensor], Tensor]


class SingularValues(NamedTuple):
    """Extreme singular values of Jacobians at samples, (N,) each.

    exact: whether the Jacobians were decomposed; otherwise `largest` is a lower estimate and `smallest` is NaN.
    """

    largest: Tensor
    smallest: Tensor
    exact: bool


def jacobians(function: Function, x: Tensor) -> Tensor:
    """(N, outputs, inputs): the Jacobian of a function that acts on each sample of x (N, ...) separately.

    >>> jacobians(lambda x: 2 * x, torch.ones(1, 2))
    tensor([[[2., 0.],
             [0., 2.]]])
    """
    x = x.detach().requires_grad_()
    y = function(x).flatten(1)
    rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0].flatten(1) for column in y.unbind(dim=1)]
    return torch.stack(rows, dim=1)


def extreme_singular_values(function: Function, x: Tensor, *, largest_state: int = LARGEST_STATE) -> SingularValues:
    """The largest and the smallest singular value of a function's Jacobian at every sample of x (N, ...).

    largest_state: size of a state up to which the full Jacobian is decomposed.
    """
    if x[0].numel() <= largest_state:
        values = torch.linalg.svdvals(jacobians(function, x))
        return SingularValues(values.amax(dim=1), values.amin(dim=1), True)
    return SingularValues(lanczos_largest(function, x), x.new_full((len(x),), torch.nan), False)


def lanczos_largest(function: Function, x: Tensor, *, steps: int = 12, seed: int = 0) -> Tensor:
    """(N,): a lower estimate of the largest singular value of a function's Jacobian at every sample of x.

    The Lanczos method on J^T J from a random start, for all samples together, with each basis vector orthogonalised
    twice: the largest Ritz value never exceeds the largest eigenvalue, up to rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(x.shape, dtype=x.dtype, generator=generator).flatten(1)
    vector = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    steps = min(steps, vector.shape[1])
    basis = vector[:, None]
    tridiagonal = x.new_zeros(len(x), steps, steps)
    for step in range(steps):
        image = _normal_product(function, x, basis[:, step])
        tridiagonal[:, step, step] = (image * basis[:, step]).sum(dim=1)
        for _ in range(2):
            image = image - (basis.transpose(1, 2) @ (basis @ image[:, :, None]))[:, :, 0]
        length = torch.linalg.vector_norm(image, dim=1)
        if step + 1 == steps:
            break
        # An exhausted basis continues with a zero vector, which adds zeros to the matrix.
        alive = length > 1e-12 * tridiagonal[:, 0, 0].abs().clamp_min(1e-300)
        following = torch.where(alive[:, None], image / length.clamp_min(1e-300)[:, None], 0.0)
        tridiagonal[:, step, step + 1] = tridiagonal[:, step + 1, step] = torch.where(alive, length, 0.0)
        basis = torch.cat([basis, following[:, None]], dim=1)
    largest: Tensor = torch.linalg.eigvalsh(tridiagonal)[:, -1].clamp_min(0.0).sqrt()
    return largest


def _normal_product(function: Function, x: Tensor, direction: Tensor) -> Tensor:
    """(N, D): J^T J times one direction (N, D) per sample."""
    _, image = torch.autograd.functional.jvp(function, x, direction.reshape(x.shape))  # type: ignore[no-untyped-call]
    _, back = torch.autograd.functional.vjp(function, x, image)  # type: ignore[no-untyped-call]
    product: Tensor = back.flatten(1)
    return product
