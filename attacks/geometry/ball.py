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
_NEWTON_STEPS, _L1_TOLERANCE, _LOOSE, _COUNTS = 100, 1e-9, 1e-2, 12


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
    """Move the points into the ball, in place, and return them; `low` and `high` are the `pixel_bounds` of x.

    linf: the nearest point. l1: about the nearest point of the intersection of ball and box, up to 1 % of eps. l2:
    scaled into the ball, then clipped into the box, which keeps it in the ball.
    """
    if threat.norm == "linf":
        return points.clamp_(low, high)
    if threat.norm == "l1":
        return torch.add(x, project_l1_box(points.sub_(x), x, threat.eps, tolerance=_LOOSE), out=points)
    difference = points.sub_(x)
    scale = (threat.eps / torch.linalg.vector_norm(difference.flatten(1), dim=1)).clamp_(max=1)
    return torch.addcmul(x, difference, per_sample(scale, x), out=difference).clamp_(0, 1)


def project_l1_box(v: Tensor, x: Tensor, eps: float | Tensor, *, tolerance: float = 0.0) -> Tensor:
    """Nearest point to v (N, ...) among {d : sum |d_i| <= eps, 0 <= x + d <= 1}, for images x (N, ...).

    eps: one radius for all, or (N,). tolerance: share of eps by which the l1 norm of the result may fall short of the
    solution's, or be scaled down to it; at least 1e-9 in float64 and 1e-6 in float32.

    The solution is d_i = sign(v_i) min(max(|v_i| - t, 0), room_i), where room_i is the room on v_i's side and t >= 0
    the multiplier of the ball (Croce and Hein 2021, "Mind the box"). Its l1 norm decreases with t and is piecewise
    linear. Newton's method, safeguarded by bisection, finds t in a few passes; sorting the breakpoints takes several
    times as long, and so do masks, so that counts are sums of zeros and ones in the type of v.
    """
    flat = v.detach().flatten(1)
    radius = torch.as_tensor(eps, dtype=flat.dtype, device=v.device).reshape(-1)
    tolerance = max(tolerance, _L1_TOLERANCE, 8 * torch.finfo(flat.dtype).eps)
    size, kept, counted = flat.abs(), torch.empty_like(flat), torch.empty_like(flat)
    room = torch.gt(flat, 0, out=torch.empty_like(flat)).sub_(x.flatten(1)).abs_()  # 1 - x upwards, x downwards
    below, above = torch.zeros_like(size[:, 0]), size.amax(dim=1)
    threshold, zero = below, size.new_zeros(())
    for _ in range(_NEWTON_STEPS):
        torch.sub(size, threshold[:, None], out=kept)
        falling = torch.gt(kept, 0, out=counted).sum(dim=1)
        falling -= torch.gt(kept, room, out=counted).sum(dim=1)
        excess = torch.clamp(kept, zero, room, out=kept).sum(dim=1) - radius
        outside = excess.abs() > tolerance * radius
        outside &= (excess > 0) | (threshold > 0)  # else v lies inside the ball
        if not bool(outside.any()):
            break
        below, above = torch.where(excess > 0, threshold, below), torch.where(excess > 0, above, threshold)
        step = threshold + excess / falling
        step = torch.where((step > below) & (step < above), step, (below + above) / 2)
        threshold = torch.where(outside, step, threshold)
    inwards = (radius / (radius + excess)).nan_to_num_(1.0).clamp_(max=1)  # NaN if the radius is 0 or infinite
    return kept.mul_(torch.sign(flat, out=counted).mul_(inwards[:, None])).reshape(v.shape)


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
    if norm == "l2":
        scaled, length = with_length(gradient)
        return scaled / per_sample(length, gradient)
    flat = gradient.flatten(1)
    stuck = torch.where(flat > 0, points.flatten(1) >= 1, points.flatten(1) <= 0)
    movable = flat.masked_fill(stuck, 0.0)
    count = max(1, int(L1_SHARE * flat.shape[1]))
    positions = movable.abs().topk(count, dim=1).indices
    signs = movable.gather(1, positions).sign()
    moved = signs.abs().sum(dim=1, keepdim=True).clamp(min=1.0)
    return torch.zeros_like(flat).scatter(1, positions, signs / moved).reshape(gradient.shape)


def signs_of_largest(values: Tensor, count: Tensor) -> Tensor:
    """The signs of about `count` (N,) entries of (N, ...) of largest size in each sample, the others being 0.

    The number differs by at most 2 % or one entry, unless entries are equal. The first threshold takes the sizes to be
    exponentially distributed, the next ones interpolate the logarithm of the count over the root of the threshold,
    which takes a few passes; sorting takes many times as long.
    """
    size, wanted = values.abs().flatten(1), count.to(values.dtype)
    mean = size.mean(dim=1)
    below, above = torch.zeros_like(mean), size.amax(dim=1)
    fewer = torch.ones_like(wanted)  # entries of at least `above`
    more = torch.full_like(wanted, size.shape[1])  # entries of at least `below`
    threshold = torch.minimum(mean * (size.shape[1] / wanted).log(), above)
    large = torch.empty_like(size)
    for _ in range(_COUNTS):
        found = torch.ge(size, threshold[:, None], out=large).sum(dim=1)
        wrong = (found - wanted).abs() > (0.02 * wanted).clamp(min=1)
        if not bool(wrong.any()):
            break
        many = found > wanted
        below, more = torch.where(many, threshold, below), torch.where(many, found, more)
        above, fewer = torch.where(many, above, threshold), torch.where(many, fewer, found)
        share = ((more / wanted).log() / (more / fewer.clamp(min=1)).log()).nan_to_num(0.5).clamp(0.1, 0.9)
        root = torch.lerp(below.sqrt(), above.sqrt(), share)
        threshold = torch.where(wrong, root.square(), threshold)
    return torch.sign(values.flatten(1), out=size).mul_(large).reshape(values.shape)


def ascended(points: Tensor, gradient: Tensor, size: Tensor, norm: str) -> Tensor:
    """The points (N, ...) moved by `size` (N,) along the `unit_direction`."""
    if norm == "l2":
        scaled, length = with_length(gradient)
        return torch.addcmul(points, scaled, per_sample(size / length, points))
    direction = unit_direction(gradient, points, norm)
    return torch.addcmul(points, direction, per_sample(size, points), out=direction)


def with_length(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors (N, ...) and their positive l2 norms (N,); multiplied by powers of two where squares would leave the
    range of their type.
    """
    length = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    if len(length) and not 1e-15 < float(length.amin()) <= float(length.amax()) < 1e15:
        exponent = torch.frexp(vectors.flatten(1).abs().amax(dim=1)).exponent.clamp(-126, 126)
        vectors = torch.ldexp(vectors, per_sample(-exponent, vectors))
        length = torch.linalg.vector_norm(vectors.flatten(1), dim=1)
    return vectors, length.clamp_(min=1e-12)


def copy_rows(into: Tensor, source: Tensor, rows: Tensor) -> None:
    """Copy the samples at the positions `rows` of one tensor (N, ...) into another."""
    if len(rows) == len(into):
        into.copy_(source)
    elif len(rows):
        into.index_copy_(0, rows, source.index_select(0, rows))


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
