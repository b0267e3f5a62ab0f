"""The smallest move onto a hyperplane within the box [0, 1], computed exactly, for l2, linf and l1.

Given x in the box, w and r: the d of least norm with <w, d> = r and 0 <= x + d <= 1; where none exists, the d that
comes closest to the hyperplane. Only moves in the direction sign(r w_i) help, each limited by the room up to the box:

    linf  d_i = sign(r w_i) min(t, room_i)            t the root of sum |w_i| min(t, room_i) = |r|
    l2    d_i = sign(r w_i) min(t |w_i|, room_i)      t the root of sum |w_i| min(t |w_i|, room_i) = |r|
    l1    the pixels with the largest |w_i| move all the way, in turn, until r is reached

For linf and l2 the left-hand side is concave, increasing and piecewise linear in t. A line through two of its points
left of the root lies above it further right, so the secant method started at 0 never overshoots the root, converges
superlinearly, and needs neither sorting nor the slope. (Masks over all pixels cost several times as much as sums here.)
"""

import torch
from torch import Tensor

_SECANTS = 60


def nearest_on_hyperplane(x: Tensor, w: Tensor, r: Tensor, norm: str, *, tolerance: float = 1e-6) -> Tensor:
    """The move d (N, ...) for images x (N, ...), normals w (N, ...) and gaps r (N,).

    tolerance: the relative part of the gap that may remain.
    """
    flat = x.flatten(1)
    normal = w.flatten(1) * r.sign()[:, None]
    if norm == "l1":
        return _l1_move(flat, normal, r.abs()).reshape(x.shape)
    direction = normal.sign()
    room = torch.addcmul(direction.clamp(min=0), direction, flat, value=-1)  # 1 - x upwards, x downwards
    sizes = _sizes(room, normal.abs_(), r.abs(), norm, tolerance)
    return sizes.mul_(direction).reshape(x.shape)


def _sizes(room: Tensor, weight: Tensor, gap: Tensor, norm: str, tolerance: float) -> Tensor:
    """min(t, room), or min(t weight, room) in l2, where t solves <weight, result> = gap."""
    smallest = torch.finfo(room.dtype).tiny
    t = gap / (weight.sum(dim=1) if norm == "linf" else weight.square().sum(dim=1)).clamp(min=smallest)
    earlier, reached_earlier = torch.zeros_like(t), torch.zeros_like(t)
    for _ in range(_SECANTS):
        sizes = torch.minimum(room, t[:, None] if norm == "linf" else t[:, None] * weight)
        reached = torch.linalg.vecdot(weight, sizes)
        missing, rise = gap - reached, reached - reached_earlier
        going = (missing > tolerance * gap) & (rise > 0)
        if not bool(going.any()):
            break
        step = torch.where(going, missing * (t - earlier) / rise.clamp(min=smallest), 0)
        earlier, reached_earlier = t, torch.where(going, reached, reached_earlier)
        t = t + step
    return sizes


def _l1_move(x: Tensor, normal: Tensor, gap: Tensor) -> Tensor:
    weight, order = normal.abs().sort(dim=1, descending=True)
    room = torch.where(normal > 0, 1 - x, x) * (normal != 0)
    gain = weight * room.gather(1, order)
    before = gain.cumsum(dim=1) - gain
    share = ((gap[:, None] - before) / gain.clamp(min=torch.finfo(x.dtype).tiny)).clamp(0, 1)
    return normal.sign() * torch.zeros_like(room).scatter(1, order, share * room.gather(1, order))
