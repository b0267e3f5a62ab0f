"""Certified radii of highway stacks: no Lipschitz constant holds on all inputs, but one holds near a given image.

On a ball around x, intersected with [0, 1], intervals bound every state, hence the gates, their slopes and F(x) - x,
and hence the Jacobian diag(t) J_F + diag(1 - t) + diag((F - x) t') G of every layer. The interval product of the
layers' Jacobians contains the gradient of every logit difference at every point of the ball. The ball is convex, so
along each segment the difference changes by at most R times the largest such gradient, and the prediction does not
change within min(R, margin / gradient). (Interval arithmetic: Moore 1966; local Lipschitz constants by propagation:
Weng et al. 2018, Fast-Lip.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from robustres.dynamics.small_networks.stack import Layer, Stack
from robustres.errors import InputError
from robustres.numerics import round_radius_down

# Every interval and norm is widened by this share, far more than the float64 rounding of a few hundred operations.
WIDENING = 1e-9


class Box(NamedTuple):
    """centre - radius <= value <= centre + radius, coordinate by coordinate."""

    centre: Tensor
    radius: Tensor

    @property
    def low(self) -> Tensor:
        return self.centre - self.radius

    @property
    def high(self) -> Tensor:
        return self.centre + self.radius


def box(low: Tensor, high: Tensor) -> Box:
    """The box between two corners, widened for rounding."""
    size = torch.maximum(low.abs(), high.abs())
    return Box((low + high) / 2, (high - low).clamp_min(0) / 2 + WIDENING * size + 1e-15)


def highway_radius(model: Stack, images: Tensor, *, rounds: int = 12) -> Tensor:
    """(N,) float64, rounded down: no image in [0, 1] within this l2 distance is classified differently.

    model: a highway stack in float64. images: (N, ...) in [0, 1]. rounds: of the bisection for the best ball.
    """
    if model.settings.kind != "highway":
        raise InputError(
            f"this certificate is for highway stacks, got {model.settings.kind}; use robustres.certify instead"
        )
    images = images.double()
    with torch.no_grad():
        states = model.states(images)
        logits = model.head(states[-1])
        low = torch.zeros(len(images), dtype=torch.float64)
        high = _allowed(model, states, logits, low)
        best = low
        for _ in range(rounds):
            middle = (low + high) / 2
            allowed = _allowed(model, states, logits, middle)
            best = torch.maximum(best, torch.minimum(middle, allowed))
            low, high = torch.where(allowed > middle, middle, low), torch.where(allowed > middle, high, middle)
    return round_radius_down(best * (1 - WIDENING))


def _allowed(model: Stack, states: list[Tensor], logits: Tensor, ball: Tensor) -> Tensor:
    """(N,): the distance within the ball that an image must move before its margin can vanish."""
    answers, head = logits.argmax(dim=1), model.head.weight
    whole = jacobian_on_ball(model, states, ball)
    rows = head[answers][:, None] - head[None]
    gradient = _row_norms(Box(rows @ whole.centre, rows.abs() @ whole.radius))
    gap = logits.gather(1, answers[:, None]) - logits - WIDENING * logits.abs().amax(dim=1, keepdim=True)
    allowed: Tensor = (gap / gradient).scatter(1, answers[:, None], torch.inf).amin(dim=1).clamp_min(0)
    return allowed


def jacobian_on_ball(model: Stack, states: list[Tensor], ball: Tensor) -> Box:
    """Interval of the Jacobians (N, width, pixels) of the last state at images in [0, 1] within `ball` of the given
    ones.

    states: x_0 .. x_depth of the images, each (N, width). ball: (N,) l2 distances.
    """
    weight, bias = model.stem.weight, model.stem.bias
    least, most = bias + weight.clamp(max=0).sum(dim=1), bias + weight.clamp(min=0).sum(dim=1)
    whole = Box(weight.expand(len(ball), -1, -1), torch.zeros(len(ball), *weight.shape, dtype=torch.float64))
    out = box(least.expand_as(states[0]), most.expand_as(states[0]))
    for layer, state in zip([*model.layers, None], states, strict=True):
        moved = _row_norms(whole) * ball[:, None]
        at = box(torch.maximum(out.low, state - moved), torch.minimum(out.high, state + moved))
        if isinstance(layer, Layer):
            own, out = _through(layer, at)
            whole = _matmul(own, whole)
    return whole


def _through(layer: Layer, x: Box) -> tuple[Box, Box]:
    """Interval of the Jacobians (N, width, width) of the layer on the box, and the box of its outputs."""
    gate = _affine(layer.gate.weight, layer.gate.bias, x)
    t = box(torch.sigmoid(gate.low), torch.sigmoid(gate.high))
    inner = _affine(layer.inner.weight, layer.inner.bias, x)
    branch = _affine(layer.outer.weight, None, box(inner.low.relu(), inner.high.relu()))
    # Slope of relu: 1 or 0 where the sign is known, in between elsewhere.
    active = box((inner.low > 0).double(), (inner.high >= 0).double())
    v, w, g = layer.outer.weight, layer.inner.weight, layer.gate.weight
    turned = _matmul(Box(v * active.centre[:, None], v.abs() * active.radius[:, None]), Box(w, torch.zeros_like(w)))
    branch_part = _times(Box(t.centre[:, :, None], t.radius[:, :, None]), turned)
    gate_part = _times(box(branch.low - x.high, branch.high - x.low), _sigmoid_slope(gate))
    eye = torch.eye(x.centre.shape[1], dtype=x.centre.dtype)
    centre = branch_part.centre + eye * (1 - t.centre)[:, None] + gate_part.centre[:, :, None] * g
    radius = branch_part.radius + eye * t.radius[:, None] + gate_part.radius[:, :, None] * g.abs()
    return Box(centre, radius * (1 + WIDENING) + WIDENING * centre.abs()), _output(x, t, branch)


def _output(x: Box, t: Box, branch: Box) -> Box:
    """t F + (1 - t) x lies between F and x, and within the result of interval arithmetic."""
    mixed = _times(t, Box(branch.centre - x.centre, branch.radius + x.radius))
    low = torch.maximum(torch.minimum(branch.low, x.low), x.low + mixed.low)
    high = torch.minimum(torch.maximum(branch.high, x.high), x.high + mixed.high)
    return box(low, high)


def _affine(weight: Tensor, bias: Tensor | None, x: Box) -> Box:
    centre, radius = x.centre @ weight.T, x.radius @ weight.abs().T
    size = x.centre.abs() @ weight.abs().T
    if bias is not None:
        centre, size = centre + bias, size + bias.abs()
    return Box(centre, radius * (1 + WIDENING) + WIDENING * size + 1e-15)


def _sigmoid_slope(z: Box) -> Box:
    """sigmoid' on an interval: largest where |z| is smallest."""
    near = torch.maximum(torch.maximum(z.low, -z.high), torch.zeros_like(z.low))
    far = torch.maximum(z.low.abs(), z.high.abs())
    slopes = [torch.sigmoid(value) * torch.sigmoid(-value) for value in (far, near)]
    return box(slopes[0], slopes[1])


def _times(left: Box, right: Box) -> Box:
    centre = left.centre * right.centre
    radius = left.centre.abs() * right.radius + left.radius * (right.centre.abs() + right.radius)
    return Box(centre, radius * (1 + WIDENING) + WIDENING * centre.abs() + 1e-15)


def _matmul(left: Box, right: Box) -> Box:
    """The product of two matrices of intervals."""
    sizes = left.centre.abs() @ right.centre.abs()
    radius = left.centre.abs() @ right.radius + left.radius @ (right.centre.abs() + right.radius)
    return Box(left.centre @ right.centre, radius * (1 + WIDENING) + WIDENING * sizes)


def _row_norms(matrix: Box) -> Tensor:
    """(N, rows): bounds on the l2 norm of every row."""
    norms: Tensor = torch.linalg.vector_norm(matrix.centre.abs() + matrix.radius, dim=2) * (1 + WIDENING)
    return norms
