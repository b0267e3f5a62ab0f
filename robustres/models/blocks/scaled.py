"""Residual blocks alpha x + beta F(x) whose branch F is non-expansive: fixed, learnable and convex shares."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustres.certify.proof.bound import Bound
from robustres.errors import ModelError
from robustres.models.blocks.site import Site
from robustres.models.blocks.stated import textbook_bound
from robustres.models.constraints.activations import activation
from robustres.models.constraints.operator_norm import Geometry, UnitNorm


def unit_convolution(site: Site) -> nn.Conv2d:
    """A convolution that keeps its size, with operator norm 1 by parametrisation."""
    convolution = nn.Conv2d(site.channels, site.channels, site.kernel, padding=site.kernel // 2)
    geometry = Geometry(site.shape, padding=site.kernel // 2)
    parametrize.register_parametrization(convolution, "weight", UnitNorm(geometry))
    return convolution


def unit_branch(site: Site) -> nn.Sequential:
    """F(x) = V act(W x + b) + c with |V| = |W| = 1."""
    if site.stride != 1:
        raise ModelError("a constrained block keeps its size; downsample with the stem or another block")
    return nn.Sequential(unit_convolution(site), activation(site.activation, site.channels), unit_convolution(site))


class ScaledBlock(nn.Module):
    """alpha x + beta F(x) with fixed alpha and beta, |F| <= 1 (spectrally normalised branch).

    Lipschitz bound: |alpha| + |beta| |V| |W|, the triangle inequality. `budget`: |alpha| + |beta|.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, site: Site, *, alpha: float, beta: float) -> None:
        super().__init__()
        self.branch = unit_branch(site)
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("beta", torch.tensor(beta))
        self.budget = abs(alpha) + abs(beta)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.alpha * x + self.beta * self.branch(x)
        return out

    def stated_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """|alpha| + |beta| |V| |W| for the current weights on features of that shape."""
        return textbook_bound(float(self.alpha), float(self.beta), self.branch[0], self.branch[2], input_shape)


def spectral_block(site: Site) -> ScaledBlock:
    """(1 - s) x + s F(x), s the site's scale: non-expansive (convex combination of non-expansive maps)."""
    return ScaledBlock(site, alpha=1 - site.scale, beta=site.scale)


class SharesWithinBudget(nn.Module):
    """Parametrisation of (alpha, beta): any two numbers, divided by |alpha| + |beta| and times the budget."""

    def __init__(self, budget: float) -> None:
        super().__init__()
        self.budget = budget

    def forward(self, shares: Tensor) -> Tensor:
        scaled: Tensor = self.budget * shares / shares.abs().sum()
        return scaled

    def right_inverse(self, shares: Tensor) -> Tensor:
        return shares


class ConvexShares(nn.Module):
    """Parametrisation of (alpha, beta): a softmax, so both are positive and their sum is 1."""

    def forward(self, scores: Tensor) -> Tensor:
        return torch.softmax(scores, dim=0)

    def right_inverse(self, shares: Tensor) -> Tensor:
        return shares.log()


class LearnableScaledBlock(nn.Module):
    """alpha x + beta F(x) with learnt alpha and beta under the exact budget |alpha| + |beta| |V| |W| <= c.

    convex: alpha, beta > 0 and alpha + beta = 1 instead. Lipschitz bound: as in `ScaledBlock`, at most c.
    """

    def __init__(self, site: Site, *, convex: bool = False, budget: float = 1.0) -> None:
        super().__init__()
        if convex and budget != 1:
            raise ModelError(f"convex shares sum to 1, so their budget is 1, got {budget:g}")
        self.branch = unit_branch(site)
        self.budget = budget
        self.shares = nn.Parameter(torch.tensor([1 - site.scale, site.scale]))
        constraint = ConvexShares() if convex else SharesWithinBudget(budget)
        parametrize.register_parametrization(self, "shares", constraint)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.shares
        out: Tensor = shares[0] * x + shares[1] * self.branch(x)
        return out

    def stated_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """|alpha| + |beta| |V| |W| for the current weights on features of that shape."""
        alpha, beta = self.shares.tolist()
        return textbook_bound(alpha, beta, self.branch[0], self.branch[2], input_shape)
