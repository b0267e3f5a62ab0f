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


def nearest_on_hyperplane(x: Tensor, w: Tensor, r: Tensor, norm: str, *, tolerance: float = 1e-6) -> Tensor:
    """The move d (N, ...) for images x (N, ...), normals w (N, ...) and gaps r (N,).

    tolerance: how much of the gap may be missing, relative.
    """
    flat = x.flatten(1)
    normal = w.flatten(1) * r.sign()[:, None]
    if norm == "l1":
        return _l1_move(flat, normal, r.abs()).reshape(x.shape)
    direction = normal if norm == "l2" else normal.sign()
    return _newton(flat, normal, direction, r.abs(), tolerance).reshape(x.shape)


def _newton(x: Tensor, normal: Tensor, direction: Tensor, gap: Tensor, tolerance: float) -> Tensor:
    """clamp(x + t direction, 0, 1) - x with the t at which <normal, .> reaches the gap."""
    smallest = torch.finfo(x.dtype).tiny
    rate = normal * direction
    t = gap / rate.sum(dim=1).clamp(min=smallest)
    for _ in range(_NEWTON_STEPS):
        free = torch.addcmul(x, direction, t[:, None])
        inside = free.clamp(0, 1)
        move = inside - x
        missing = gap - torch.linalg.vecdot(normal, move)
        going = missing > tolerance * gap
        if not bool(going.any()):
            break
        slope = torch.where(inside == free, rate, 0).sum(dim=1)
        going &= slope > 0
        if not bool(going.any()):
            break
        t = torch.where(going, t + missing / slope.clamp(min=smallest), t)
    return move


def _l1_move(x: Tensor, normal: Tensor, gap: Tensor) -> Tensor:
    weight, order = normal.abs().sort(dim=1, descending=True)
    room = torch.where(normal > 0, 1 - x, x) * (normal != 0)
    gain = weight * room.gather(1, order)
    before = gain.cumsum(dim=1) - gain
    share = ((gap[:, None] - before) / gain.clamp(min=torch.finfo(x.dtype).tiny)).clamp(0, 1)
    return normal.sign() * torch.zeros_like(room).scatter(1, order, share * room.gather(1, order))
