"""When a convolution may be replaced by a circular one: tori on which an image does not interact with its wrapped
copies.

A zero-padded map is  crop . (shift-invariant map of signals on Z^2) . embed,  and crop and embed have norm 1. On a
torus of N points the output of the shift-invariant map is its periodisation; inside the cropped image it is unchanged
if no shifted copy of the output's support reaches the image. A torus may be twisted, x(n + N) = exp(2 pi i phase) x(n):
if nothing wraps around, the twist has no effect, so every phase gives a valid bound.

Everything here is integer arithmetic on one axis at a time; an interval (low, high) contains the support of a signal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from robustres.certify.maps.convolution import Convolution, Transposed
from robustres.certify.maps.coordinate_maps import Diagonal, Selection
from robustres.certify.maps.linear_map import (
    Composition,
    Dense,
    Identity,
    LinearMap,
    Scaled,
    Sum,
    unanswered,
)

Interval = tuple[int, int]
Demand = tuple[Fraction, int]  # points per input point, and the number of points that a signal at this rate needs
HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Torus:
    """A coarse torus of `points` per axis, twisted by `phase`; a signal at multiplicity r is defined on r * points."""

    points: tuple[int, int]
    phase: tuple[Fraction, Fraction] = (Fraction(0), Fraction(0))


@dataclass(frozen=True)
class Passage:
    """The effect of a map on one axis of a signal.

    support: of the uncropped output. rates: points per input point of every intermediate signal, that of the output
    last. wraps: whether some part pads this axis circularly.
    """

    support: Interval
    rates: tuple[Fraction, ...] = (Fraction(1),)
    wraps: bool = False

    def demands(self, rate: Fraction) -> list[Demand]:
        """What the intermediate signals need beside room for their support, for an input at this rate."""
        return [(rate * inner, 1) for inner in self.rates]


@dataclass(frozen=True)
class Embedding:
    """How a map fits on tori: the multiplicity of the input, and the smallest coarse torus.

    exact: per axis, whether circular padding allows only this size, without a twist.
    """

    multiplicity: tuple[int, int]
    points: tuple[int, int]
    exact: tuple[bool, bool]

    def tori(self) -> list[Torus]:
        """The smallest torus and those one point larger, without a twist and with a half one, along each axis."""
        axes = [
            [(n, Fraction(0))] if exact else [(n + extra, phase) for extra in (0, 1) for phase in (Fraction(0), HALF)]
            for n, exact in zip(self.points, self.exact, strict=True)
        ]
        return [Torus((n, m), (p, q)) for n, p in axes[0] for m, q in axes[1]]


def coarse_frequencies(torus: Torus) -> Tensor:
    """(F, 2) integers: one of each pair of conjugate frequencies, whose matrices have equal singular values."""
    rows, columns = torus.points
    if all(phase in (0, HALF) for phase in torus.phase):
        columns = columns // 2 + 1 if torus.phase[1] == 0 else (columns + 1) // 2
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))


def embed(map_: LinearMap) -> Embedding | None:
    """The embedding of a map between images; None if it is not shift-invariant, or if its requirements contradict each
    other."""
    if len(map_.in_shape) != 3 or len(map_.out_shape) != 3:
        return None
    sides: list[tuple[int, int, bool]] = []  # multiplicity of the input, points, whether this is the only possible size
    for axis in (0, 1):
        image, side = map_.in_shape[1 + axis], map_.out_shape[1 + axis]
        found = passage(map_, axis, (0, image - 1))
        if found is None:
            return None
        needed = max(side, found.support[1] + 1, side - found.support[0])
        multiplicity, points = smallest([(Fraction(1), image), *found.demands(Fraction(1)), (found.rates[-1], needed)])
        if found.wraps and points * multiplicity != image:
            return None
        sides.append((multiplicity, points, found.wraps))
    multiplicities, counts, exact = zip(*sides, strict=True)
    return Embedding((multiplicities[0], multiplicities[1]), (counts[0], counts[1]), (exact[0], exact[1]))


def smallest(demands: Sequence[Demand]) -> tuple[int, int]:
    """The multiplicity of the input, and the smallest number of coarse points."""
    multiplicity = math.lcm(*(rate.denominator for rate, _ in demands))
    return multiplicity, max(math.ceil(need / (rate * multiplicity)) for rate, need in demands)


def passage(map_: LinearMap, axis: int, support: Interval) -> Passage | None:
    """The passage of a signal on Z^2 with the given support through the map without its crop (`embed`).

    Returns None if the map is not shift-invariant, or if it reads values that the true map has cropped: then the
    uncropped map differs from the true one, and its symbol gives no bound.
    """
    match map_:
        case Dense() | Selection():
            return None
        case Identity():
            return Passage(support) if map_.in_shape == map_.out_shape else None
        case Diagonal():
            return Passage(support) if map_.of_channels else None
        case Scaled():
            return passage(map_.map, axis, support)
        case Sum():
            return _sum_passage(map_, axis, support)
        case Composition():
            return _chain_passage(map_, axis, support)
        case Convolution():
            return _convolution_passage(map_, axis, support)
        case Transposed():
            return _transposed_passage(map_, axis, support)
    raise unanswered("passage", map_)


def _sum_passage(map_: Sum, axis: int, support: Interval) -> Passage | None:
    branches = [passage(term, axis, support) for term in map_.terms]
    known = [branch for branch in branches if branch is not None]
    if len(known) < len(branches):
        return None
    hull = min(branch.support[0] for branch in known), max(branch.support[1] for branch in known)
    rates = tuple(rate for branch in known for rate in branch.rates)
    return Passage(hull, rates, any(branch.wraps for branch in known))


def _chain_passage(map_: Composition, axis: int, support: Interval) -> Passage | None:
    rates, wraps = [Fraction(1)], False
    for part in map_.parts:
        found = passage(part, axis, support)
        if found is None:
            return None
        support, wraps = found.support, wraps or found.wraps
        rates += [rates[-1] * inner for inner in found.rates]
    return Passage(support, tuple(rates), wraps)


def _convolution_passage(map_: Convolution, axis: int, support: Interval) -> Passage | None:
    (low, high), rates = support, (Fraction(1, map_.stride[axis]),)
    if map_.padding[axis] != (0, 0) and map_.circular:
        side, out_side = map_.in_shape[1 + axis], map_.out_shape[1 + axis]
        whole = side == out_side * map_.stride[axis]  # exact on the torus of the image itself
        return Passage((0, out_side - 1), rates, True) if whole and low >= 0 and high < side else None
    if not _reads_only_truth(map_, axis, support):
        return None
    pad, reach, stride = _window(map_, axis)
    return Passage((-((reach - low - pad) // stride), (high + pad) // stride), rates)


def _transposed_passage(map_: Transposed, axis: int, support: Interval) -> Passage | None:
    known = isinstance(map_.map, Convolution) and not map_.map.circular
    if not known or not _reads_only_truth(map_, axis, support):
        return None
    low, high = support
    pad, reach, stride = _window(map_.map, axis)
    return Passage((stride * low - pad, stride * high + reach - pad), (Fraction(stride),))


def reads(map_: Convolution | Transposed, axis: int) -> Interval:
    """The input positions from which the output image is computed, including padding."""
    side = map_.out_shape[1 + axis]
    if isinstance(map_, Transposed):
        pad, reach, stride = _window(map_.map, axis)
        return -((reach - pad) // stride), (side - 1 + pad) // stride
    pad, reach, stride = _window(map_, axis)
    return -pad, stride * (side - 1) + reach - pad


def _window(convolution: LinearMap, axis: int) -> tuple[int, int, int]:
    """Padding before the image, distance between the first and the last element of the kernel, stride."""
    assert isinstance(convolution, Convolution)
    reach = (convolution.weight.shape[2 + axis] - 1) * convolution.dilation[axis]
    return convolution.padding[axis][0], reach, convolution.stride[axis]


def _reads_only_truth(map_: Convolution | Transposed, axis: int, support: Interval) -> bool:
    """Whether every position that is read and may be nonzero lies inside the true image."""
    low, high = reads(map_, axis)
    return max(low, support[0]) >= 0 and min(high, support[1]) <= map_.in_shape[1 + axis] - 1
