"""The smallest move onto a hyperplane within the box [0, 1], computed exactly, for l2, linf and l1.

Given x in the box, w and r: the d of least norm with <w, d> = r and 0 <= x + d <= 1; where none exists, the d that
comes closest to the hyperplane.

    linf  d = clip(t sign(w), -x, 1 - x)   t the root of <w, d> = r
    l2    d = clip(t w, -x, 1 - x)         t the root of <w, d> = r
    l1    the pixels with the largest |w_i| move all the way in the direction sign(r w_i) until r is reached

For linf and l2, <w, d> increases with t, is piecewise linear, and concave for t >= 0, so a line through two of its
points on one side of the root does not overshoot. The secant method converges superlinearly and needs neither sorting
nor the slope. In l1, few pixels usually suffice, and the largest weights are found once per hyperplane; where they do
not suffice, the smallest weight that moves is bracketed by halving. (Masks over all pixels cost several times as much
as sums here, and sorting a hundred times.)
"""

import torch
from torch import Tensor

_SECANTS, _HALVINGS = 60, 100
_LARGEST_STRETCH = 10.0
_FEW = 48  # pixels with the largest weights in l1


def nearest_on_hyperplane(x: Tensor, w: Tensor, r: Tensor, norm: str, *, tolerance: float = 1e-6) -> Tensor:
    """The move d (N, ...) for images x (N, ...), normals w (N, ...) and gaps r (N,).

    tolerance: the relative part of the gap that may remain.
    """
    return Normals(w, norm).move(x, r, torch.ones_like(r), tolerance=tolerance)[0]


class Normals:
    """The normals w (N, ...) of hyperplanes, for moves from several images onto parallel ones."""

    def __init__(self, w: Tensor, norm: str) -> None:
        self.norm, self.normal = norm, w.flatten(1)
        if norm == "l1":
            self.largest = self.normal.abs().topk(min(_FEW, self.normal.shape[1]), dim=1).indices
            return
        self.direction = self.normal.sign() if norm == "linf" else self.normal
        self.slope = torch.linalg.vecdot(self.normal, self.direction).clamp(min=torch.finfo(w.dtype).tiny)

    def move(self, x: Tensor, r: Tensor, stretch: Tensor, *, tolerance: float) -> tuple[Tensor, Tensor]:
        """The move (N, ...) from x (N, ...) over the gaps r (N,), and its stretch (N,).

        The stretch is the factor, at least 1, by which the box lengthens the move along the direction; the search for
        it starts at the given one, for example that of the last move from nearly the same image.
        """
        flat = x.flatten(1)
        if self.norm == "l1":
            return self._few_pixels(flat, r, tolerance).reshape(x.shape), stretch
        whole = r / self.slope
        planes, none = (self.direction, self.normal, -flat, 1 - flat, r), torch.zeros_like(r)
        move, t = _secants(planes, whole * stretch, none, none, tolerance, _SECANTS)
        return move.reshape(x.shape), (t / whole).nan_to_num(1.0).clamp(1, _LARGEST_STRETCH)

    def _few_pixels(self, x: Tensor, r: Tensor, tolerance: float) -> Tensor:
        """The move in l1 by the pixels with the largest weights, or by all pixels where these do not reach r."""
        weight, pixels, gap = self.normal.gather(1, self.largest), x.gather(1, self.largest), r.abs()
        sign = weight.sign().mul_(r.sign()[:, None])
        room = torch.where(sign > 0, 1 - pixels, pixels)
        gain = weight.abs() * room
        reached = gain.cumsum(dim=1)
        smallest = torch.finfo(x.dtype).tiny
        share = ((gap[:, None] - reached + gain) / gain.clamp(min=smallest)).clamp_(0, 1)
        moved = torch.zeros_like(x).scatter_(1, self.largest, share.mul_(room).mul_(sign))
        short = (reached[:, -1] < gap).nonzero().flatten()
        if len(short) and self.largest.shape[1] < x.shape[1]:
            moved[short] = _halvings(x[short], self.normal[short], r[short], tolerance)
        return moved


def _secants(
    planes: tuple[Tensor, ...], t: Tensor, earlier: Tensor, reached_earlier: Tensor, tolerance: float, turns: int
) -> tuple[Tensor, Tensor]:
    """Moves (N, D) that reach the gaps r, and their lengths along the directions, tried from t (N,) on.

    planes: directions, normals, lower and upper limits (N, D), and r (N,). Most moves end with the first try if the
    start is good; the next tries are for the others alone.
    """
    direction, normal, low, high, r = planes
    move = torch.mul(direction, t[:, None]).clamp_(low, high)
    reached = torch.linalg.vecdot(normal, move)
    missing, rise = r - reached, reached - reached_earlier
    going = ((missing.abs() > tolerance * r.abs()) & (rise != 0)).nonzero().flatten()
    if turns and len(going):
        following = (t + missing * ((t - earlier) / rise))[going]
        rest = tuple(values[going] for values in planes)
        move[going], t[going] = _secants(rest, following, t[going], reached[going], tolerance, turns - 1)
    return move, t


def _halvings(x: Tensor, w: Tensor, r: Tensor, tolerance: float) -> Tensor:
    """Pixels with |w| of at least `above` move all the way, those of at least `below` by a common share."""
    sign, weight, gap = w.sign().mul_(r.sign()[:, None]), w.abs(), r.abs()
    room = torch.addcmul(sign.clamp(min=0), sign, x, value=-1)  # 1 - x upwards, x downwards
    gain = weight * room
    smallest = torch.finfo(x.dtype).tiny
    above, below = weight.amax(dim=1) * (1 + torch.finfo(x.dtype).eps), torch.zeros_like(gap)
    least, most = torch.zeros_like(gap), gain.sum(dim=1)  # reached by moving the pixels above and below, respectively
    large = torch.empty_like(gain)
    for turn in range(_HALVINGS):
        wide = above - below > tolerance * above
        wide &= (most - least > tolerance * gap) & (most > gap)
        if not bool(wide.any()):
            break
        share = ((most - gap) / (most - least).clamp(min=smallest)).clamp(0.05, 0.95) if turn % 2 else 0.5
        middle = torch.where(wide, below + share * (above - below), below)
        reached = torch.ge(weight, middle[:, None], out=large).mul_(gain).sum(dim=1)
        enough = reached >= gap
        below, most = torch.where(wide & enough, middle, below), torch.where(wide & enough, reached, most)
        above, least = torch.where(wide & ~enough, middle, above), torch.where(wide & ~enough, reached, least)
    share = ((gap - least) / (most - least).clamp(min=smallest)).clamp(0, 1)
    moved = torch.ge(weight, above[:, None], out=large).lerp_(
        torch.ge(weight, below[:, None]).to(x.dtype), share[:, None]
    )
    return moved.mul_(room).mul_(sign)
