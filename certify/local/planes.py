"""Planes below and above the product of two values between proven bounds of both.

A product minus a plane, x y - a x - b y, is linear in each of the two values, so its extremes over a box lie at the
corners, whatever a and b are. Here a and b are the middles of the intervals, where the planes below and above are the
means of the two of McCormick (1976) and parallel: what two rows have in common stays in common.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from robustres.numerics import gamma


@dataclass(frozen=True, eq=False)
class Planes:
    """first x + second y + lower_offset <= x y <= first x + second y + upper_offset between the bounds; (N, *shape).

    low, high: of the product.
    """

    first: Tensor
    second: Tensor
    lower_offset: Tensor
    upper_offset: Tensor
    low: Tensor
    high: Tensor

    def to(self, dtype: torch.dtype) -> "Planes":
        """In another precision, for a search."""
        return Planes(*(getattr(self, field.name).to(dtype) for field in fields(self)))


Interval = tuple[Tensor, Tensor]


def planes(x: Interval, y: Interval) -> Planes:
    """The planes of products of values in these intervals, computed, and valid, in float64."""
    (x_low, x_high), (y_low, y_high) = ([side.to(torch.float64) for side in ends] for ends in (x, y))
    first, second = y_low / 2 + y_high / 2, x_low / 2 + x_high / 2
    corners = [(a, b) for a in (x_low, x_high) for b in (y_low, y_high)]
    products = torch.stack([a * b for a, b in corners])
    gaps = torch.stack([a * b - first * a - second * b for a, b in corners])
    sizes = torch.stack([(a * b).abs() + (first * a).abs() + (second * b).abs() for a, b in corners]).amax(0)
    room = 2 * gamma(4) * sizes + 1e-300
    slack = gamma(4) * products.abs().amax(0) + 1e-300
    return Planes(
        first,
        second,
        gaps.amin(0) - room,
        gaps.amax(0) + room,
        products.amin(0) - slack,
        products.amax(0) + slack,
    ).to(x[0].dtype)
