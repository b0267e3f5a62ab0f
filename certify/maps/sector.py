"""Activations as inequalities: slopes in an interval, or a sort within groups of channels.

Every hidden layer has one form: after an orthogonal mixing R of the channels, coordinate c of the increment is
    a_c z_c + (b_c - a_c) u_c,   with   sum over each tie group of u_c (z_c - u_c) >= 0.
For an elementwise activation with slopes in [a, b], R = I and every channel is a tie group of its own: u_c (z_c - u_c)
>= 0 says that the slope of (phi - a z)/(b - a) lies in [0, 1].

GroupSort (MaxMin is size 2) sorts the channels of each group. Let v be the increment of its input, w that of its
output, P the projection that removes the mean of the group. Sorting keeps the sum, so the means of v and w agree, and
it is non-expansive, |w| <= |v| (rearrangement inequality), hence |P w| <= |P v|. With w = -v + 2 u on the range of P, u
. (v - u) = (|v|^2 - |w|^2)/4 >= 0 summed over the group. So in an orthonormal basis whose first vector is the mean, the
mean has slope exactly 1 and the other coordinates satisfy the inequality for [-1, 1], tied within the group: one
multiplier per group. No other property of the sort is used.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustres.errors import InputError


@dataclass(frozen=True)
class GroupSort:
    """Sorting within groups of `size` channels; MaxMin is size 2.

    layout: "adjacent" groups channels (0, 1), (2, 3), ...; "strided" groups c with c + C/size (torch.chunk halves).
    """

    size: int = 2
    layout: Literal["adjacent", "strided"] = "adjacent"

    def __post_init__(self) -> None:
        if self.size < 2:
            raise InputError(f"a group to be sorted has at least 2 channels, got {self.size}")


Slopes = tuple[float, float] | GroupSort


# A hidden layer's inequalities: slopes (C,) from below and above, tie groups (C,), mixing of the channels (C, C),
# which is None for the identity.
Sector = tuple[Tensor, Tensor, Tensor, Tensor | None]


def sector(slopes: Slopes, channels: int) -> Sector:
    """The inequalities of the activation on this number of channels (features, if the input is a vector)."""
    if isinstance(slopes, GroupSort):
        return _group_sort_sector(slopes, channels)
    low, high = slopes
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise InputError(f"slopes must be two finite numbers a <= b, got {slopes}")
    lower = torch.full((channels,), float(low), dtype=torch.float64)
    upper = torch.full((channels,), float(high), dtype=torch.float64)
    return lower, upper, torch.arange(channels), None


def largest_slope(slopes: Slopes) -> float:
    """The Lipschitz constant of the activation."""
    return 1.0 if isinstance(slopes, GroupSort) else max(abs(slopes[0]), abs(slopes[1]))


def _group_sort_sector(slopes: GroupSort, channels: int) -> Sector:
    size = slopes.size
    if channels % size:
        raise InputError(f"{channels} channels cannot be sorted in groups of {size}")
    groups = channels // size
    members = torch.arange(channels).reshape(groups, size)
    if slopes.layout == "strided":
        members = torch.arange(channels).reshape(size, groups).T
    mixing = torch.zeros(channels, channels, dtype=torch.float64)
    basis = _basis_with_mean(size)
    for group in range(groups):
        rows = torch.arange(group * size, (group + 1) * size)
        mixing[rows[:, None], members[group][None, :]] = basis
    lower = torch.full((channels,), -1.0, dtype=torch.float64)
    lower[::size] = 1.0
    tie = torch.arange(channels) // size
    upper = torch.ones(channels, dtype=torch.float64)
    return lower, upper, tie, mixing


def _basis_with_mean(size: int) -> Tensor:
    """Orthonormal rows, the first one constant (Helmert's matrix)."""
    basis = torch.zeros(size, size, dtype=torch.float64)
    basis[0] = 1 / math.sqrt(size)
    for row in range(1, size):
        basis[row, :row] = 1 / math.sqrt(row * (row + 1))
        basis[row, row] = -row / math.sqrt(row * (row + 1))
    return basis
