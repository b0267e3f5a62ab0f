"""The inputs that a proof is about: a ball around each image, intersected with [0, 1]^n."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from robustres.certify.maps.linear_map import as_rows
from robustres.errors import InputError
from robustres.numerics import gamma
from robustres.threat import Norm

# Steps of the search for the multiplier of a ball intersected with a box; every multiplier gives a valid bound.
STEPS = 4


@dataclass(frozen=True, eq=False)
class Region:
    """All x with |x - centre| <= eps in `norm` and lower <= x <= upper, for N samples.

    centre, lower, upper: (N, *shape), lower <= centre <= upper. eps: (N,), infinite where the box alone counts.
    """

    centre: Tensor
    eps: Tensor
    norm: Norm
    lower: Tensor
    upper: Tensor

    @classmethod
    def ball(cls, centre: Tensor, eps: Tensor | float, norm: Norm) -> "Region":
        """The ball within [0, 1]^n; the whole ball if its centre lies outside [0, 1]^n."""
        inside = ((centre >= 0) & (centre <= 1)).flatten(1).all(dim=1)
        wall = torch.where(inside, 0.0, torch.inf).to(centre).reshape(-1, *[1] * (centre.ndim - 1))
        eps = torch.as_tensor(eps, dtype=torch.float64, device=centre.device).expand(len(centre))
        lower, upper = (-wall).expand_as(centre), (1 + wall).expand_as(centre)
        return cls(centre, eps, norm, lower, upper)

    @classmethod
    def box(cls, lower: Tensor, upper: Tensor) -> "Region":
        """All x with lower <= x <= upper."""
        if not bool((lower <= upper).all()):
            raise InputError("a box needs lower <= upper in every coordinate")
        centre = torch.minimum(torch.maximum(lower / 2 + upper / 2, lower), upper)
        return cls(centre, torch.full((len(centre),), torch.inf, dtype=torch.float64), "linf", lower, upper)

    def __len__(self) -> int:
        return len(self.centre)

    def __getitem__(self, samples: Tensor | slice) -> "Region":
        parts = (self.centre[samples], self.eps[samples], self.lower[samples], self.upper[samples])
        return replace(self, centre=parts[0], eps=parts[1], lower=parts[2], upper=parts[3])

    def reshape(self, shape: tuple[int, ...]) -> "Region":
        """The same region with samples in another shape; shape: with the number of samples."""
        centre, lower, upper = (one.reshape(shape) for one in (self.centre, self.lower, self.upper))
        return replace(self, centre=centre, lower=lower, upper=upper)

    def with_eps(self, eps: Tensor | float) -> "Region":
        """The same region with other radii."""
        return replace(self, eps=torch.as_tensor(eps, dtype=torch.float64, device=self.centre.device).expand(len(self)))

    def to(self, dtype: torch.dtype) -> "Region":
        """The same region in another precision, for a search."""
        return replace(
            self, centre=self.centre.to(dtype), lower=self.lower.to(dtype), upper=self.upper.to(dtype)
        )  # fmt: skip

    @cached_property
    def _room(self) -> tuple[Tensor, Tensor]:
        """How much each coordinate can decrease and increase (N, n), rounded up; in linf within eps."""
        fall, rise = (side.flatten(1) for side in (self.centre - self.lower, self.upper - self.centre))
        room = []
        for way in (fall, rise):
            way = torch.nextafter(way, torch.full_like(way, torch.inf)).clamp_min(0)
            if self.norm == "linf":
                way = torch.minimum(way, self.eps.to(way)[:, None])
            room.append(way)
        return room[0], room[1]

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest box around the region, rounded outwards: lower and upper (N, *shape)."""
        fall, rise = (way.reshape_as(self.centre) for way in self._room)
        eps = self.eps.to(self.centre).reshape(-1, *[1] * (self.centre.ndim - 1))
        inf = torch.full_like(self.centre, torch.inf)
        lower = torch.nextafter(self.centre - torch.minimum(fall, eps), -inf)
        upper = torch.nextafter(self.centre + torch.minimum(rise, eps), inf)
        return torch.maximum(lower, self.lower), torch.minimum(upper, self.upper)

    def descent(self, rows: Tensor, owner: Tensor, eps: Tensor | None = None, *, close: bool = True) -> Tensor:
        """(R,) the largest decrease of <row, x> from its value at the centre: at or above the true one up to rounding.

        rows: (R, *shape). owner: (R,) the sample of each row. eps: (R,) other radii than the samples' own.
        close: False leaves all but the coordinates that cannot move at all out of account, in a fraction of the time.
        """
        flat = rows.flatten(1)
        fall, rise = (way.to(flat) for way in self._room)
        if eps is None and self.norm == "linf":
            return weighed(flat.clamp_min(0), fall, owner) + weighed(-flat.clamp_max(0), rise, owner)
        if self.norm == "l2" and not close:
            down = weighed(flat.clamp_min(0).square(), (fall > 0).to(flat), owner)
            return (
                self.eps[owner].to(flat)
                * (down + weighed(flat.clamp_max(0).square(), (rise > 0).to(flat), owner)).sqrt()
            )
        if self.norm == "l1" and not close:
            movable = torch.where(flat > 0, fall[owner] > 0, rise[owner] > 0)
            return self.eps[owner].to(flat) * torch.where(movable, flat.abs(), 0.0).amax(dim=1)
        eps = (self.eps[owner] if eps is None else eps).to(flat)
        size, room = flat.abs(), torch.where(flat > 0, fall[owner], rise[owner])
        if self.norm == "linf":
            return (size * torch.where(flat == 0, 0.0, torch.minimum(room, eps[:, None]))).sum(dim=1)
        return _within_l2(size, room, eps) if self.norm == "l2" else _within_l1(size, room, eps)

    def charge(self, rows: Tensor, owner: Tensor, descent: Tensor) -> Tensor:
        """(R,) at or above the rounding of <row, centre> - descent, both computed in float64."""
        flat = rows.flatten(1)
        size = weighed(flat.abs(), self.centre.flatten(1).abs(), owner) + descent
        return gamma(flat.shape[1] + 64) * size * (1 + 1e-6)


def half_widths(region: Region) -> Tensor:
    """(n,) at or above the largest change of each pixel from the centre, for a region of one sample."""
    lower, upper = region.bounds
    return torch.maximum(region.centre - lower, upper - region.centre)[0].flatten() * (1 + 2.0**-50)


def _within_l2(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """An upper bound of the maximum of <size, d> over 0 <= d <= room, |d|_2 <= eps.

    For every t > 0 it is at most t eps^2 / 2 + sum of max over d_i of size_i d_i - t d_i^2 / 2. At t = |size| / eps
    without the box that is eps |size|.
    """
    whole = eps * torch.linalg.vector_norm(size, dim=1)
    with torch.no_grad():
        stopped, count = room == 0, None
        for _ in range(STEPS):  # set aside what reaches its bound; t of the others falls to its fixed point
            left = (eps.square() - torch.where(stopped, room, 0.0).square().sum(dim=1)).clamp_min(1e-30)
            t = (torch.where(stopped, 0.0, size).square().sum(dim=1) / left).sqrt().clamp_min(1e-30)
            stopped = size >= t[:, None] * room
            before, count = count, int(stopped.sum())
            if count == before:
                break
    best = torch.minimum(size / t[:, None], room)
    gain = torch.where(best == room, size * room - t[:, None] * room.square() / 2, size.square() / t[:, None] / 2)
    gain = torch.where(torch.isfinite(gain), gain, size.square() / t[:, None] / 2)
    return torch.minimum(whole, t * eps.square() / 2 + gain.sum(dim=1))


def _within_l1(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """An upper bound of the maximum of <size, d> over 0 <= d <= room, |d|_1 <= eps: t eps + sum (size - t)+ room."""
    with torch.no_grad():
        order = size.argsort(dim=1, descending=True)
        taken = room.gather(1, order).cumsum(dim=1)
        place = (taken < eps[:, None]).sum(dim=1, keepdim=True).clamp_max(size.shape[1] - 1)
        t = size.gather(1, order).gather(1, place)[:, 0]
        t = torch.where(taken[:, -1] <= eps, torch.zeros_like(t), t)
    above = (size - t[:, None]).clamp_min(0)
    return t * eps + torch.where(above > 0, above * room, 0.0).sum(dim=1)


def weighed(rows: Tensor, values: Tensor, owner: Tensor) -> Tensor:
    """(R,) the products of rows (R, ...) with their owners' values (N, ...)."""
    rows, values = as_rows(rows), as_rows(values)
    return rows @ values[0] if len(values) == 1 else (rows * values[owner]).sum(dim=1)
