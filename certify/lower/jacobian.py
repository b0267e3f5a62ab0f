"""Lower estimates of the largest singular value of a network's Jacobian at given inputs, by products only."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

# Largest total size of the Lanczos vectors of one call: half a gigabyte in float64.
_BASIS_BUDGET = 2**26


class JacobianProducts:
    """Products with the Jacobian J of a batched function at x (B, ...), and with its transpose.

    The function is run once. J^T u is one backward pass; it is linear in u, so J v is the derivative of <J^T u, v> with
    respect to u. Where torch cannot differentiate twice (hardsigmoid), J v is computed in forward mode.
    """

    def __init__(self, function: Function, x: Tensor) -> None:
        self._function = function
        self._twice = True
        self._x = x.detach().requires_grad_()
        with torch.enable_grad():
            self._y = function(self._x)
            self._u = torch.zeros_like(self._y, requires_grad=True)
            self._pulled = self._gradient(self._y, self._x, self._u, create_graph=True)

    def forward(self, v: Tensor) -> Tensor:
        """J v for v (B, *input shape)."""
        if self._twice:
            try:
                return self._gradient(self._pulled, self._u, v)
            except RuntimeError as error:
                if "is not implemented" not in str(error):
                    raise
                self._twice = False
        product: Tensor = torch.func.jvp(self._function, (self._x.detach(),), (v,))[1]
        return product

    def transpose(self, u: Tensor) -> Tensor:
        """J^T u for u (B, *output shape)."""
        return self._gradient(self._y, self._x, u)

    @staticmethod
    def _gradient(output: Tensor, source: Tensor, weights: Tensor, *, create_graph: bool = False) -> Tensor:
        if not output.requires_grad:  # the output does not depend on the source
            return torch.zeros_like(source)
        (gradient,) = torch.autograd.grad(
            output, source, weights, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )
        return gradient


class Steepest(NamedTuple):
    """Directions v (B, ...), |v| = 1, in which the function changes fastest, and |J v| (B,), an estimate."""

    stretch: Tensor
    direction: Tensor


def steepest_directions(
    function: Function, x: Tensor, start: Tensor, *, steps: int, deadline: float = math.inf
) -> Steepest:
    """Lanczos iteration on J^T J at every x (B, ...) from the directions `start`, re-orthogonalised twice.

    deadline: on `time.monotonic`; the result is that of the steps completed by then.
    """
    products = JacobianProducts(function, x)
    size, batch = x[0].numel(), len(x)
    steps = max(1, min(steps, size, _BASIS_BUDGET // (size * batch)))
    basis = x.new_zeros(steps, batch, size)
    diagonal, beside = x.new_zeros(batch, steps), x.new_zeros(batch, steps)
    basis[0] = unit(start).reshape(len(start), -1)
    done = 0
    for k in range(steps):
        image = products.forward(basis[k].reshape(x.shape))
        if k == 0:
            shrink = _about_one_over(norms(image))
        image = scaled(shrink, products.transpose(scaled(shrink, image))).reshape(len(x), -1).nan_to_num(0.0, 0.0, 0.0)
        diagonal[:, k] = (image * basis[k]).sum(dim=1)
        done = k + 1
        if done == steps or time.monotonic() > deadline:
            break
        for _ in range(2):
            overlap = torch.einsum("kbn,bn->kb", basis[:done], image)
            image = image - torch.einsum("kbn,kb->bn", basis[:done], overlap)
        beside[:, k] = torch.linalg.vector_norm(image, dim=1)
        exhausted = beside[:, k] <= 1e-12 * diagonal[:, :done].amax(dim=1)
        beside[:, k] = beside[:, k].masked_fill(exhausted, 0.0)
        basis[done] = unit(image).masked_fill(exhausted[:, None], 0.0)
    tridiagonal = torch.diag_embed(diagonal[:, :done])
    if done > 1:
        off = beside[:, : done - 1]
        tridiagonal = tridiagonal + torch.diag_embed(off, offset=1) + torch.diag_embed(off, offset=-1)
    weights = torch.linalg.eigh(tridiagonal).eigenvectors[:, :, -1]
    steepest = torch.einsum("kbn,bk->bn", basis[:done], weights)
    # Where the Jacobian is zero, all directions are equally steep and the eigenvector may pick an unused basis vector.
    steepest = torch.where(steepest.any(dim=1, keepdim=True), steepest, basis[0])
    direction = unit(steepest.reshape(x.shape))
    return Steepest(norms(products.forward(direction)).nan_to_num(0.0, 0.0, 0.0), direction)


def _about_one_over(sizes: Tensor) -> Tensor:
    """(B,): powers of two that scale the Jacobian such that its square neither overflows nor underflows."""
    usable = torch.isfinite(sizes) & (sizes > torch.finfo(sizes.dtype).tiny)
    exponents = torch.frexp(torch.where(usable, sizes, 1.0)).exponent.clamp(-1020, 1020)
    return torch.ldexp(torch.ones_like(sizes), -exponents)


def norms(x: Tensor) -> Tensor:
    """(B,): the l2 norm of every sample, without overflow."""
    flat = x.reshape(len(x), -1)
    largest = flat.abs().amax(dim=1).clamp_min(torch.finfo(flat.dtype).tiny)
    return torch.mul(torch.linalg.vector_norm(flat / largest[:, None], dim=1), largest)


def unit(x: Tensor) -> Tensor:
    """Every sample divided by its norm; zeros stay zeros."""
    return scaled(1 / norms(x).clamp_min(torch.finfo(x.dtype).tiny), x)


def scaled(factor: Tensor, x: Tensor) -> Tensor:
    """Every sample of x (B, ...) times its own factor (B,)."""
    product: Tensor = factor.reshape(-1, *[1] * (x.ndim - 1)) * x
    return product
