"""The allowed images, {x' : |x' - x| <= eps} within [0, 1]: projections, directions and starts for l2, linf and l1.

Iterations use `project_`, in the precision of the images. Every returned example has passed through `retract`, after
which the distance computed in float64 is at most eps and every pixel lies in [0, 1]; in l0, where iterations do not
project, the smallest changes are undone.
"""

import math

import torch
from torch import Tensor

from robustres.attacks.geometry.randomness import normal, uniform
from robustres.numerics import distance
from robustres.threat import ThreatModel

# Share of the pixels moved by a step in l1 (Tramer and Boneh 2019 use the 99th percentile; with 5 %, small images still
# move).
L1_SHARE = 0.05
_NEWTON_STEPS, _L1_TOLERANCE = 100, 1e-9


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,) shaped to broadcast over images (N, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def pixel_bounds(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The smallest and largest image of x's dtype inside the linf ball and [0, 1], exact when checked in float64."""
    exact = x.to(torch.float64)
    bounds = []
    for end in (exact - eps, exact + eps):
        bound = end.clamp_(0.0, 1.0).to(x.dtype)
        outside = (exact - bound).abs_() > eps
        bounds.append(torch.where(outside, torch.nextafter(bound, x), bound))
    return bounds[0], bounds[1]


def project_(points: Tensor, x: Tensor, low: Tensor, high: Tensor, threat: ThreatModel) -> Tensor:
    """Points of the ball near the given ones, whose memory may be reused; `low` and `high` are the `pixel_bounds` of x.

    linf: the nearest point. l1: the nearest point of the intersection of ball and box. l2: scaled into the ball, then
    clipped into the box, which keeps it in the ball.
    """
    if threat.norm == "linf":
        return points.clamp_(low, high)
    difference = points - x
    if threat.norm == "l1":
        return x + project_l1_box(difference, -x, 1 - x, threat.eps).to(x.dtype)
    length = torch.linalg.vector_norm(difference.flatten(1), dim=1)
    scale = torch.where(length > threat.eps, threat.eps / length, torch.ones_like(length))
    scaled: Tensor = torch.addcmul(x, difference, per_sample(scale, x))
    return scaled.clamp_(0, 1)


def project_l1_box(v: Tensor, low: Tensor, high: Tensor, eps: float | Tensor) -> Tensor:
    """Nearest point to v (N, ...) among {d : sum |d_i| <= eps, low <= d <= high}, low <= 0 <= high, in float64.

    eps: one radius for all, or (N,); the l1 norm of the result exceeds it by at most 1e-9, relatively. The solution is
    d_i = sign(v_i) min(max(|v_i| - t, 0), cap_i), where cap_i is the room on v_i's side and t >= 0 the multiplier of
    the ball (Croce and Hein 2021, "Mind the box"). Its l1 norm decreases with t and is piecewise linear. Newton's
    method, safeguarded by bisection, finds t in a few passes; sorting the breakpoints takes several times as long.
    """
    flat = v.detach().to(torch.float64).flatten(1)
    radius = torch.as_tensor(eps, dtype=torch.float64, device=v.device).reshape(-1)
    cap = torch.where(flat > 0, high.flatten(1), -low.flatten(1)).to(torch.float64)
    size = flat.abs()
    kept = torch.minimum(size, cap)
    excess = kept.sum(dim=1) - radius
    threshold = torch.zeros_like(excess)
    below, above = threshold, size.amax(dim=1)
    for _ in range(_NEWTON_STEPS):
        outside = excess.abs() > _L1_TOLERANCE * radius
        outside &= (excess > 0) | (threshold > 0)  # else v lies inside the ball
        if not bool(outside.any()):
            break
        below, above = torch.where(excess > 0, threshold, below), torch.where(excess > 0, above, threshold)
        moving = torch.ne(kept, cap).logical_and_(kept > 0).sum(dim=1)
        step = threshold + excess / moving
        step = torch.where((step > below) & (step < above), step, (below + above) / 2)
        threshold = torch.where(outside, step, threshold)
        kept = torch.minimum(size - threshold[:, None], cap).clamp_(min=0)
        excess = kept.sum(dim=1) - radius
    return (flat.sign() * kept).reshape(v.shape)


def retract(points: Tensor, x: Tensor, low: Tensor, high: Tensor, threat: ThreatModel) -> Tensor:
    """Points moved into the ball such that the check in float64 holds; points already inside are unchanged."""
    if threat.norm == "linf":
        inside: Tensor = torch.clamp(points, low, high)
        return inside
    points = points.clamp(0, 1)
    if threat.norm == "l0":
        return with_largest_changes(points, x, threat.eps) if math.isfinite(threat.eps) else points
    shrink = 2.0**-23
    while bool((outside := distance(points.double() - x.double(), threat.norm) > threat.eps).any()):
        beyond, centre = points[outside].double(), x[outside].double()
        length = distance(beyond - centre, threat.norm)
        factor = (threat.eps / length) * (1 - shrink) if shrink < 1 else torch.zeros_like(length)
        points[outside] = (centre + (beyond - centre) * per_sample(factor, centre)).to(x.dtype)
        shrink *= 4
    return points


def with_largest_changes(points: Tensor, x: Tensor, count: float | Tensor) -> Tensor:
    """Points that keep only their `count` largest changes from x (N, ...); every other value is that of x.

    count: one number for all, or (N,).
    """
    change = (points - x).flatten(1).abs()
    rank = change.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    kept = rank < torch.as_tensor(count, device=x.device).reshape(-1, 1)
    return torch.where(kept.reshape(x.shape), points, x)


def unit_direction(gradient: Tensor, points: Tensor, norm: str) -> Tensor:
    """Steepest ascent direction of unit length in the norm; 0 where the gradient is 0.

    l1: the sign of the gradient on the share L1_SHARE of the pixels with the largest gradient among those that can
    still move, in equal parts.
    """
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    if norm == "l2":
        largest = flat.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
        scaled = flat / largest
        length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp(min=1e-12)
        unit: Tensor = (scaled / length).reshape(gradient.shape)
        return unit
    stuck = torch.where(flat > 0, points.flatten(1) >= 1, points.flatten(1) <= 0)
    movable = flat.masked_fill(stuck, 0.0)
    count = max(1, int(L1_SHARE * flat.shape[1]))
    positions = movable.abs().topk(count, dim=1).indices
    signs = movable.gather(1, positions).sign()
    moved = signs.abs().sum(dim=1, keepdim=True).clamp(min=1.0)
    return torch.zeros_like(flat).scatter(1, positions, signs / moved).reshape(gradient.shape)


def random_start(keys: Tensor, x: Tensor, low: Tensor, high: Tensor, threat: ThreatModel) -> Tensor:
    """A random image of the ball for each sample, from the keys of `randomness.sample_keys`.

    linf: uniform in the cube. l2: uniform in the ball. l1: uniform in the ball (exponential spacings). All are then
    clipped.
    """
    shape, dtype = tuple(x.shape[1:]), x.dtype
    if threat.norm == "linf":
        noise = (2 * uniform(keys, shape, dtype=dtype) - 1) * threat.eps
        return torch.clamp(x + noise, low, high)
    size = x.shape[1:].numel()
    length = uniform(keys, draw=1, dtype=dtype) ** (1.0 / size) * threat.eps
    if threat.norm == "l2":
        direction = normal(keys, shape, dtype=dtype)
        norms = torch.linalg.vector_norm(direction.flatten(1), dim=1)
    else:
        signed = 2 * uniform(keys, shape, dtype=torch.float64) - 1
        direction = (-torch.log1p(-signed.abs()) * signed.sign()).to(dtype)
        norms = direction.flatten(1).abs().sum(dim=1)
    return project_(x + direction * per_sample(length / norms, x), x, low, high, threat)
