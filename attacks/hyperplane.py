"""The smallest move onto a hyperplane inside the box [0, 1], exactly, for l2, linf and l1.

Given x in the box, w and r: the d of least norm with <w, d> = r and 0 <= x + d <= 1; where none exists, the d that
comes closest to the hyperplane. Only moves in the direction sign(r w_i) help, at most by the room there is:

    linf  d_i = sign(r w_i) min(t, room_i)            t the root of sum |w_i| min(t, room_i) = |r|
    l2    d_i = sign(r w_i) min(t |w_i|, room_i)      t the root of sum |w_i| min(t |w_i|, room_i) = |r|
    l1    the pixels with the largest |w_i| move all the way, in turn, until r is reached

For linf and l2 the left side is concave, increasing and piecewise linear in t, so Newton's method from the left is
monotone and ends at the exact root after finitely many steps; it needs no sorting.
"""

import torch
from torch import Tensor

_NEWTON_STEPS = 30


def nearest_on_hyperplane(x: Tensor, w: Tensor, r: Tensor, norm: str) -> Tensor:
    """The move d (N, ...) for images x (N, ...), normals w (N, ...) and gaps r (N,)."""
    flat, normal = x.flatten(1), w.flatten(1)
    direction = normal.sign() * r.sign()[:, None]
    room = torch.where(direction > 0, 1 - flat, flat).clamp_(min=0)
    room = torch.where(direction == 0, torch.zeros_like(room), room)
    weight, gap = normal.abs(), r.abs()
    step = _l1_moves(weight, room, gap) if norm == "l1" else _newton(weight, room, gap, proportional=norm == "l2")
    return (direction * step).reshape(x.shape)


def _newton(weight: Tensor, room: Tensor, gap: Tensor, *, proportional: bool) -> Tensor:
    speed = weight if proportional else (weight > 0).to(weight.dtype)
    rate = weight * speed
    t = gap / rate.sum(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)
    for _ in range(_NEWTON_STEPS):
        step = torch.minimum(speed * t[:, None], room)
        missing = gap - (weight * step).sum(dim=1)
        slope = (rate * (step < room)).sum(dim=1)
        going = (missing > 1e-6 * gap) & (slope > 0)
        if not bool(going.any()):
            break
        t = torch.where(going, t + missing / slope.clamp(min=torch.finfo(weight.dtype).tiny), t)
    return torch.minimum(speed * t[:, None], room)


def _l1_moves(weight: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    ordered, order = weight.sort(dim=1, descending=True)
    gain = ordered * room.gather(1, order)
    before = gain.cumsum(dim=1) - gain
    share = ((gap[:, None] - before) / gain.clamp(min=torch.finfo(weight.dtype).tiny)).clamp(0, 1)
    return torch.zeros_like(room).scatter(1, order, share * room.gather(1, order))
