"""The attack inside adversarial training: a few projected gradient steps on any differentiable loss.

This is not one of robustres.attacks: those stop at the first success and verify it; training needs the worst point of
the ball.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from robustres.errors import InputError
from robustres.threat import ThreatModel


def worst_in_ball(
    loss: Callable[[Tensor], Tensor], images: Tensor, threat: ThreatModel, *, steps: int, generator: torch.Generator
) -> Tensor:
    """Images (N, C, H, W) in [0, 1] within the threat model, after `steps` ascent steps on the summed loss.

    loss: of a batch of images, per sample or summed. generator: of the random start, on the CPU.
    """
    noise = torch.randn(images.shape, generator=generator).to(images)
    points = (images + _project(0.5 * threat.eps * noise, threat)).clamp(0, 1)
    length = 2.5 * threat.eps / steps
    for _ in range(steps):
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(points).sum(), points)
        moved = points.detach() + length * _direction(gradient, threat)
        points = (images + _project(moved - images, threat)).clamp(0, 1)
    return points.detach()


def _direction(gradient: Tensor, threat: ThreatModel) -> Tensor:
    """Steepest ascent of unit norm."""
    if threat.norm == "linf":
        return gradient.sign()
    return gradient / _norms(gradient).clamp_min(1e-12)


def _project(difference: Tensor, threat: ThreatModel) -> Tensor:
    """The nearest point of the ball around 0."""
    if threat.norm == "linf":
        return difference.clamp(-threat.eps, threat.eps)
    if threat.norm == "l2":
        return difference * (threat.eps / _norms(difference).clamp_min(1e-12)).clamp_max(1.0)
    raise InputError(f"adversarial training supports the norms l2 and linf, got {threat.norm!r}")


def _norms(values: Tensor) -> Tensor:
    norms: Tensor = values.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    return norms
