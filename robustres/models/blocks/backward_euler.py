"""Backward Euler steps: an implicit residual block that no step size can make expansive."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.certify.proof.bound import Bound
from robustres.errors import ModelError
from robustres.models.blocks.scaled import unit_convolution
from robustres.models.blocks.site import Site
from robustres.models.blocks.stated import norm_of


class BackwardEulerBlock(nn.Module):
    """The y with y = x - h W^T relu(W y + b), h the site's scale > 0, |W| <= 1 by parametrisation.

    f(y) = -W^T relu(W y + b) is the negative gradient of a convex potential, so its one-sided Lipschitz constant is
    at most 0 and the step is non-expansive for every h (the proximal map of the potential; Dahlquist 1959).

    Solver: y <- y - tau (y + h W^T relu(W y + b) - x) from y = x, tau = 2 / (2 + h), in a number of steps fixed by h
    and the precision. With |W| <= 1 each step is (1 - tau)-Lipschitz in y and adds tau times the input's change, so
    every iterate, converged or not, is itself non-expansive in x: the tolerance does not enter the certificate.
    The gradient is that of the exact solution, by implicit differentiation with the same iteration.
    """

    budget = 1.0

    def __init__(self, site: Site) -> None:
        super().__init__()
        if site.stride != 1 or site.activation != "relu":
            raise ModelError("a backward Euler block keeps its size and uses relu; change the stride or the activation")
        if not (math.isfinite(site.scale) and site.scale > 0):
            raise ModelError(f"the step h of backward Euler must be positive, got {site.scale:g}")
        self.inner = unit_convolution(site)
        self.step = site.scale
        self.padding = site.kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        bias = self.inner.bias
        assert bias is not None
        out: Tensor = _BackwardEuler.apply(x, self.inner.weight, bias, self.step, self.padding)
        return out

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """|y + h W^T relu(W y + b) - x| per sample (N,): also bounds the distance of y to the exact solution."""
        hidden = functional.relu(functional.conv2d(y, self.inner.weight, self.inner.bias, padding=self.padding))
        gap = y + self.step * functional.conv_transpose2d(hidden, self.inner.weight, padding=self.padding) - x
        norms: Tensor = gap.flatten(1).norm(dim=1)
        return norms

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """1 while |W| <= 1; for larger W the iteration's own bound, which counts its steps."""
        norm = norm_of(self.inner, input_shape)
        tau = 2 / (2 + self.step)
        rate = max(1 - tau, tau * (1 + self.step * norm.upper**2) - 1)
        steps = solver_steps(self.step, torch.float64)
        total = 1.0
        if rate > 1 - tau:
            for _ in range(steps):
                total = math.nextafter((rate * total + tau) * (1 + 4e-16), math.inf)
        return Bound(0.0, max(1.0, total), "backward Euler", norm.guarantee, norm.seconds)


def solver_steps(step: float, dtype: torch.dtype) -> int:
    """Iterations after which the error is below the rounding of `dtype`: the contraction is h / (2 + h)."""
    return 2 + math.ceil(math.log(torch.finfo(dtype).eps) / math.log(step / (2 + step)))


class _BackwardEuler(torch.autograd.Function):
    """The solution and its implicit gradient: with D the active units, g solves (I + h W^T D W) g = incoming."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, step: float, padding: int) -> Tensor:
        tau, y = 2 / (2 + step), x
        for _ in range(solver_steps(step, x.dtype)):
            hidden = functional.relu(functional.conv2d(y, weight, bias, padding=padding))
            y = y - tau * (y + step * functional.conv_transpose2d(hidden, weight, padding=padding) - x)
        ctx.save_for_backward(y, weight, bias)
        ctx.step, ctx.padding = step, padding
        return y

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, bias = ctx.saved_tensors
        step, padding = ctx.step, ctx.padding
        tau, g = 2 / (2 + step), incoming
        active = functional.conv2d(y, weight, bias, padding=padding) > 0
        for _ in range(solver_steps(step, y.dtype)):
            inner = active * functional.conv2d(g, weight, padding=padding)
            g = g - tau * (g + step * functional.conv_transpose2d(inner, weight, padding=padding) - incoming)
        gradients: list[Tensor | None] = [None, None]
        wanted = [place for place, needed in enumerate(ctx.needs_input_grad[1:3]) if needed]
        if wanted:
            with torch.enable_grad():
                parameters = [weight.detach().requires_grad_(), bias.detach().requires_grad_()]
                hidden = functional.relu(functional.conv2d(y.detach(), parameters[0], parameters[1], padding=padding))
                force = -step * functional.conv_transpose2d(hidden, parameters[0], padding=padding)
                found = torch.autograd.grad(force, [parameters[place] for place in wanted], g)
            for place, gradient in zip(wanted, found, strict=True):
                gradients[place] = gradient
        return g, *gradients, None, None
