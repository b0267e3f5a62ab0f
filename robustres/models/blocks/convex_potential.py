"""Gradient steps on a convex potential: residual blocks that are non-expansive by construction."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from robustres.certify.proof.bound import Bound
from robustres.errors import ModelError
from robustres.models.blocks.site import Site
from robustres.models.blocks.stated import norm_of
from robustres.models.constraints.operator_norm import STORAGE_SLACK, Geometry, UnitNorm


class UnitRows(nn.Module):
    """Parametrisation W -> T^(-1/2) W with T_i = sum_j |W W^T|_ij q_j / q_i and learnt q > 0.

    Then T - W W^T is diagonally dominant after scaling by q, hence positive semidefinite, hence |T^(-1/2) W| <= 1
    (Araujo et al. 2023, theorem 1; Prach and Lampert 2022 with q = 1). No iteration and no estimate is involved.
    W W^T is the kernel's correlation with itself; zero padding only removes terms.
    """

    shrink: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_q = nn.Parameter(torch.zeros(channels))
        self.register_buffer("shrink", torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        q = self.log_q.exp()
        correlation = functional.conv2d(weight, weight, padding=(weight.shape[2] - 1, weight.shape[3] - 1))
        rows = (correlation.abs().sum(dim=(2, 3)) * q).sum(dim=1) / q
        scaled: Tensor = self.shrink * weight / (rows + 1e-12).sqrt()[:, None, None, None]
        return scaled

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def settle(self, weight: Tensor) -> None:
        """Allow for the rounding of the stored kernel, so that its norm is at most 1."""
        self.shrink.fill_(1 - STORAGE_SLACK)


class ConvexPotentialBlock(nn.Module):
    """x - 2 W^T relu(W x + b) with |W| <= 1: a gradient step of length 2 on a convex, 1-smooth potential.

    Lipschitz bound: max(1, 2 |W|^2 - 1), so 1 for |W| <= 1: the Jacobian is I - 2 W^T D W with D in [0, 1], whose
    eigenvalues lie in [1 - 2 |W|^2, 1]. The two published forms differ in how |W| is kept below 1: by its operator norm
    (CPL, Meunier et al. 2022) or by rows (SLL, Araujo et al. 2023; their T^-1 is absorbed in W, relu being positively
    homogeneous).
    """

    budget = 1.0

    def __init__(self, site: Site, constraint: nn.Module) -> None:
        super().__init__()
        if site.stride != 1:
            raise ModelError("a convex potential block keeps its size; downsample with the stem or another block")
        if site.activation != "relu":
            raise ModelError(f"a convex potential block needs relu, got {site.activation!r}")
        self.site = site
        self.inner = nn.Conv2d(site.channels, site.channels, site.kernel, padding=site.kernel // 2)
        parametrize.register_parametrization(self.inner, "weight", constraint)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.inner.weight
        padding = self.site.kernel // 2
        hidden = functional.relu(functional.conv2d(x, weight, self.inner.bias, padding=padding))
        out: Tensor = x + functional.conv_transpose2d(hidden, -2 * weight, padding=padding)
        return out

    def stated_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """max(1, 2 |W|^2 - 1) for the current weights on features of that shape."""
        norm = norm_of(self.inner, input_shape)
        upper = max(1.0, 2 * norm.upper**2 * (1 + 1e-15) - 1 + 1e-15)
        return Bound(0.0, upper, "convex potential", norm.guarantee, norm.seconds)


def cpl_block(site: Site) -> ConvexPotentialBlock:
    """The form constrained by its operator norm, estimated during training."""
    return ConvexPotentialBlock(site, UnitNorm(Geometry(site.shape, padding=site.kernel // 2)))


def sll_block(site: Site) -> ConvexPotentialBlock:
    """The form constrained by rows, with learnt weights q."""
    return ConvexPotentialBlock(site, UnitRows(site.channels))
