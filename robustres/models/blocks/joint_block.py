"""The joint-constrained block: an ordinary conv-relu-conv residual block, divided by its own joint bound."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.certify.blocks.joint_bound import joint_bound
from robustres.certify.fourier.matrix_polynomial import polynomial
from robustres.certify.fourier.torus import coarse_frequencies, embed
from robustres.certify.maps.convolution import Convolution
from robustres.certify.maps.linear_map import Identity
from robustres.certify.proof.bound import Bound
from robustres.errors import ModelError
from robustres.models.blocks.site import Site
from robustres.models.blocks.stated import map_of, textbook_bound
from robustres.models.constraints.operator_norm import STORAGE_SLACK, Geometry, OperatorNorm
from robustres.numerics import rounded_up

SLOPES = (0.0, 1.0)
SEARCH_EFFORT = 2.0


class JointBlock(nn.Module):
    """s (x + V relu(W x + b) + c) with s = 1 / L and L the joint bound of x + V relu(W x + b).

    L^2 = lambda_max(I + B (2T - V^T V)^-1 B^T), B = V + W^T T, holds for every T > 0 with 2T - V^T V > 0 (slopes of
    relu in [0, 1]). So log T is an ordinary parameter, one number per hidden channel, and minimising the loss makes the
    bound tight. During training L is evaluated frequency by frequency at this T; `settle_scale` replaces it by the
    certifier's proved bound. Starts at V = -W^T T, where B = 0 and L = 1: a convex potential block, from which W and V
    can then deviate freely.
    """

    scale: Tensor
    settled: Tensor
    budget = 1.0

    def __init__(self, site: Site) -> None:
        super().__init__()
        if site.stride != 1 or site.activation != "relu":
            raise ModelError("a joint block keeps its size and uses relu; change the stride or the activation")
        self.site = site
        padding = site.kernel // 2
        self.inner = nn.Conv2d(site.channels, site.channels, site.kernel, padding=padding)
        self.outer = nn.Conv2d(site.channels, site.channels, site.kernel, padding=padding)
        self.log_t = nn.Parameter(torch.zeros(site.channels))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("settled", torch.tensor(False))
        with torch.no_grad():
            rows = functional.conv2d(self.inner.weight, self.inner.weight, padding=site.kernel - 1).abs().sum((1, 2, 3))
            self.inner.weight /= (rows / 2).sqrt()[:, None, None, None]
            self.outer.weight.copy_(-self.inner.weight.transpose(0, 1).flip(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            scale = (1 / self.training_bound()).to(x.dtype)
            self.scale.copy_(scale.detach())
            self.settled.fill_(False)
        else:
            scale = self.scale
        out: Tensor = scale * (x + self.outer(functional.relu(self.inner(x))))
        return out

    def training_bound(self) -> Tensor:
        """L at the current T, differentiable in W, V and T; T is enlarged in place if it is not admissible."""
        shape, padding = self.site.shape, ((self.site.kernel // 2,) * 2,) * 2
        layers = tuple(Convolution(layer.weight, shape, padding=padding) for layer in (self.inner, self.outer))
        embedding = embed(layers[0])  # both have kernels of one size
        assert embedding is not None
        (torus, *_), every = embedding.tori(), (1, 1)
        frequencies = coarse_frequencies(torus).to(self.log_t.device)
        inner, outer = (polynomial(layer, every)[0].at(torus, frequencies) for layer in layers)
        for _ in range(100):
            found = _largest_gain(inner, outer, self.log_t.double().exp())
            if torch.isfinite(found):
                return found.sqrt()
            with torch.no_grad():
                self.log_t.add_(0.1)
        raise ModelError("the joint bound of a block is not finite; lower the learning rate")

    def settle_scale(self) -> None:
        """Divide by the certifier's bound from now on; no effect if this has been done already."""
        if self.settled:
            return
        self.settled.fill_(True)
        self.scale.fill_(1 / (self._unscaled_bound(self.site.shape).upper * (1 + STORAGE_SLACK)))

    def stated_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """s L for the current weights on features of that shape."""
        found = self._unscaled_bound(input_shape)
        scale = float(self.scale)
        upper = rounded_up(scale * found.upper, 2)
        return Bound(min(upper, scale * found.lower), upper, found.method, found.guarantee, found.seconds)

    def _unscaled_bound(self, input_shape: tuple[int, ...]) -> Bound:
        shortcut = Identity(tuple(input_shape))
        layers = map_of(self.inner, input_shape), map_of(self.outer, input_shape)
        return joint_bound(shortcut, *layers, slopes=SLOPES, effort=SEARCH_EFFORT)


def _largest_gain(inner: Tensor, outer: Tensor, multipliers: Tensor) -> Tensor:
    """The largest lambda_max(I + B (2T - V^H V)^-1 B^H) over frequencies (F, C, C), infinite where T is too small."""
    factor, info = torch.linalg.cholesky_ex(torch.diag(2 * multipliers) - outer.mH @ outer)
    if bool((info != 0).any()):
        return multipliers.new_full((), torch.inf)
    coupled = torch.linalg.solve_triangular(factor, outer.mH + multipliers[:, None] * inner, upper=False)
    largest: Tensor = 1 + torch.linalg.eigvalsh(coupled.mH @ coupled)[:, -1].max()
    return largest


class TextbookBlock(JointBlock):
    """s (x + V relu(W x + b) + c) with s = 1 / (1 + |V| |W|): the same block constrained by the textbook bound.

    For comparison: the triangle inequality assumes that shortcut and branch stretch the same direction, so the scale is
    smaller than necessary, which costs accuracy.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        del self.log_t
        geometry = Geometry(site.shape, padding=site.kernel // 2)
        self.norms = nn.ModuleList(OperatorNorm(geometry) for _ in range(2))
        for norm, layer in zip(self.norms, (self.inner, self.outer), strict=True):
            norm.warm_up(layer.weight)  # type: ignore[operator]

    def training_bound(self) -> Tensor:
        """1 + |V| |W| by warm-started power iteration."""
        inner, outer = (norm(layer.weight) for norm, layer in zip(self.norms, (self.inner, self.outer), strict=True))
        total: Tensor = 1 + inner * outer
        return total

    def _unscaled_bound(self, input_shape: tuple[int, ...]) -> Bound:
        return textbook_bound(1.0, 1.0, self.inner, self.outer, input_shape)
