"""Orthogonal matrices as parametrisations, and the residual block whose linear part is orthogonal."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustres.errors import ModelError
from robustres.models.blocks.merged import MergedBlock
from robustres.models.blocks.site import Site
from robustres.models.constraints.operator_norm import STORAGE_SLACK, full_precision


@dataclass(frozen=True)
class Factor:
    """Rows of a weight, as a matrix, that form a rotation (square) or an isometry (orthonormal rows or columns)."""

    rows: slice
    kind: Literal["rotation", "isometry"]


@runtime_checkable
class LiesOnManifold(Protocol):
    """A parametrisation whose tensor may itself be orthogonal: training can move it there (`training.manifold`).

    on_manifold: whether the tensor is used as it is instead of being orthogonalised.
    """

    on_manifold: bool

    def to_manifold(self, weight: Tensor) -> Tensor:
        """The orthogonal tensor that yields the same weight as the free tensor `weight`."""
        ...

    def from_manifold(self, weight: Tensor) -> Tensor:
        """A free tensor that yields the same weight as the orthogonal one."""
        ...

    def factors(self, weight: Tensor) -> tuple[Factor, ...]:
        """The orthogonal matrices contained in the tensor."""
        ...


def orthonormal_rows(matrix: Tensor) -> Tensor:
    """L^-1 W for a matrix W and the Cholesky factor L of W W^T: orthonormal rows, or columns if W is tall.

    A ridge of 1e-6 of the mean square of a row keeps the factor well conditioned; with it no singular value exceeds 1.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthonormal_rows(matrix.T).T
    rows: Tensor = _OrthonormalRows.apply(matrix)[0]
    return rows


class _OrthonormalRows(torch.autograd.Function):
    """The same with a gradient of two products and one triangular system, L^-T (G - (P + P^T) Q).

    P is the lower triangle of G Q^T with half its diagonal, G the gradient of Q = L^-1 W; the ridge is treated as
    constant.
    """

    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, Tensor]:
        gram = matrix @ matrix.T
        gram.diagonal().add_(1e-6 * gram.diagonal().mean())
        factor = torch.linalg.cholesky(gram)
        return torch.linalg.solve_triangular(factor, matrix, upper=False), factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        rows, factor = ctx.saved_tensors
        product = (gradients[0] @ rows.T).tril()
        symmetric = product.tril(-1) + product.tril(-1).T + product.diagonal().diag()
        gradient: Tensor = torch.linalg.solve_triangular(factor.T, gradients[0] - symmetric @ rows, upper=True)
        return gradient


class SemiOrthogonal(nn.Module):
    """Kernels (out, in, k, k) whose matrix (out, in k k) has orthonormal rows, or columns if it is tall.

    By `orthonormal_rows` (Hu et al. 2023b). For a convolution whose windows do not overlap
    (stride k, or k = 1) this matrix is the operator on every window, so its norm is exactly 1 up to rounding.
    """

    shrink: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shrink", torch.ones(()))
        self.on_manifold = False

    @full_precision
    def forward(self, weight: Tensor) -> Tensor:
        if self.on_manifold:
            return weight
        kernel: Tensor = self.shrink * orthonormal_rows(weight.flatten(1)).reshape(weight.shape)
        return kernel

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def to_manifold(self, weight: Tensor) -> Tensor:
        return orthonormal_rows(weight.flatten(1)).reshape(weight.shape)

    def from_manifold(self, weight: Tensor) -> Tensor:
        return weight

    def factors(self, weight: Tensor) -> tuple[Factor, ...]:
        rows, columns = weight.flatten(1).shape
        return (Factor(slice(0, rows), "rotation" if rows == columns else "isometry"),)

    def settle(self, weight: Tensor) -> None:
        """Allow for the rounding of the stored kernel, so that its norm is at most 1."""
        self.shrink.fill_(1 - STORAGE_SLACK)


class CayleyMinusIdentity(nn.Module):
    """A 1 x 1 kernel W such that I + W = (I + A)^-1 (I - A) Q_0 is orthogonal, A skew-symmetric (Cayley's map).

    The unconstrained square matrix gives A as its skew part; Q_0 is a fixed orthogonal matrix, so that A = 0 is not
    the identity map.
    """

    start: Tensor
    shrink: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("start", nn.init.orthogonal_(torch.empty(channels, channels)))
        self.register_buffer("shrink", torch.ones(()))
        self.on_manifold = False

    @full_precision
    def forward(self, weight: Tensor) -> Tensor:
        square = weight.flatten(1)
        if self.on_manifold:
            return (square - torch.eye(len(square), dtype=square.dtype, device=square.device)).reshape(weight.shape)
        skew = square - square.T
        eye = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
        rotation = torch.linalg.solve(eye + skew, (eye - skew) @ self.start)
        kernel: Tensor = (self.shrink * rotation - eye).reshape(weight.shape)
        return kernel

    def to_manifold(self, weight: Tensor) -> Tensor:
        rotation: Tensor = self(weight).flatten(1)
        rotation = rotation + torch.eye(len(rotation), dtype=rotation.dtype, device=rotation.device)
        return rotation.reshape(weight.shape)

    def from_manifold(self, weight: Tensor) -> Tensor:
        self.start.copy_(weight.flatten(1))
        return torch.zeros_like(weight)

    def factors(self, weight: Tensor) -> tuple[Factor, ...]:
        return (Factor(slice(0, len(weight)), "rotation"),)

    def settle(self, weight: Tensor) -> None:
        """Allow for the rounding of the stored kernel, so that |I + W| is at most 1."""
        self.shrink.fill_(1 - STORAGE_SLACK)


class OrthogonalBlock(MergedBlock):
    """act(x + W x + b) with I + W orthogonal: a linear residual that rotates but never stretches or shrinks.

    Lipschitz constant: exactly 1 (an orthogonal map, then an activation of slope at most 1). W is a 1 x 1
    convolution, so the block mixes channels; use the stem's stride to turn whole patches into channels.
    """

    def __init__(self, site: Site) -> None:
        if site.stride != 1:
            raise ModelError("an orthogonal block keeps its size; downsample with the stem or another block")
        super().__init__(nn.Conv2d(site.channels, site.channels, 1), site)
        nn.init.normal_(self.branch.weight, std=0.01)
        parametrize.register_parametrization(self.branch, "weight", CayleyMinusIdentity(site.channels), unsafe=True)
