"""When a convolution may be replaced by a circular one: the tori on which an image never meets its own wrapped copy.

A zero-padded map is  crop . (shift-invariant map of signals on Z^2) . embed,  and crop and embed have norm 1. On a
torus of N points the shift-invariant map's output is its periodisation; inside the cropped image it is unchanged when
no shifted copy of the output's support reaches the image. A torus may be twisted, x(n + N) = exp(2 pi i phase) x(n):
where nothing wraps around, the twist is not seen, so every phase gives a valid bound.

Everything here is integer arithmetic on one axis at a time: an interval (low, high) holds a signal's support.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from robustres.certify.maps.convolution import Convolution, TransposedConvolution
from robustres.certify.maps.linear_map import ChannelScale, Composition, Identity, LinearMap, Scaled, Sum

Interval = tuple[int, int]
HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Torus:
    """A coarse torus of `points` per axis, twisted by `phase`; a signal at multiplicity r lives on r * points."""

    points: tuple[int, int]
    phase: tuple[Fraction, Fraction] = (Fraction(0), Fraction(0))


@dataclass(frozen=True)
class Embedding:
    """How maps that share one input fit on tori: the multiplicity of the input, and the smallest coarse torus.

    exact: per axis, whether circular padding allows this one size only, without a twist.
    """

    multiplicity: tuple[int, int]
    points: tuple[int, int]
    exact: tuple[bool, bool]

    def tori(self, *, enlargements: int = 1, phases: Sequence[Fraction] = (Fraction(0), HALF)) -> list[Torus]:
        """The smallest torus and those up to `enlargements` points larger, each with every combination of phases."""
        axes = [
            [(n, Fraction(0))]
            if exact
            else [(n + extra, phase) for extra in range(enlargements + 1) for phase in phases]
            for n, exact in zip(self.points, self.exact, strict=True)
        ]
        return [Torus((n, m), (p, q)) for n, p in axes[0] for m, q in axes[1]]


def embed(chains: Sequence[Sequence[LinearMap]]) -> Embedding | None:
    """Where maps from one image fit together; each chain is applied part after part, cropped to the image between.

    Returns None where some part is no shift-invariant map, or where the demands contradict each other.
    """
    if any(len(part.in_shape) != 3 or len(part.out_shape) != 3 for chain in chains for part in chain):
        return None
    axes = [_embed_axis(chains, axis) for axis in (0, 1)]
    if axes[0] is None or axes[1] is None:
        return None
    multiplicities, points, exact = zip(*(axes[0], axes[1]), strict=True)
    return Embedding((multiplicities[0], multiplicities[1]), (points[0], points[1]), (bool(exact[0]), bool(exact[1])))


def _embed_axis(chains: Sequence[Sequence[LinearMap]], axis: int) -> tuple[int, int, bool] | None:
    """Multiplicity of the input, smallest number of coarse points, and whether that size is the only one."""
    demands: list[tuple[Fraction, int]] = []  # (points per input point, points needed at that rate)
    rates = [Fraction(1)]
    for chain in chains:
        rate = Fraction(1)
        for part in chain:
            image = (0, part.in_shape[1 + axis] - 1)
            support = propagate(part, axis, image)
            if support is None:
                return None
            demands.append((rate, image[1] + 1))
            inner_rates = [rate * inner for inner in passed_rates(part, axis)]
            rates += inner_rates
            rate = inner_rates[-1]
            side = part.out_shape[1 + axis]
            demands.append((rate, max(side, support[1] + 1, side - support[0])))
    multiplicity = math.lcm(*(rate.denominator for rate in rates))
    points = max(math.ceil(need / (rate * multiplicity)) for rate, need in demands)
    if not any(wraps(part, axis) for chain in chains for part in chain):
        return multiplicity, points, False
    side = chains[0][0].in_shape[1 + axis]
    return (multiplicity, points, True) if points * multiplicity == side else None


def passed_rates(map_: LinearMap, axis: int) -> list[Fraction]:
    """Points per input point of every signal on the way through the map; the last one is the output's."""
    match map_:
        case Convolution():
            return [Fraction(1, map_.stride[axis])]
        case TransposedConvolution():
            return [Fraction(map_.stride[axis])]
        case Scaled():
            return passed_rates(map_.map, axis)
        case Sum():
            return [rate for term in map_.terms for rate in passed_rates(term, axis)]
        case Composition():
            rates = [Fraction(1)]
            for part in map_.parts:
                rates += [rates[-1] * inner for inner in passed_rates(part, axis)]
            return rates
    return [Fraction(1)]


def propagate(map_: LinearMap, axis: int, support: Interval) -> Interval | None:
    """Support of the uncropped output of a signal whose support is given.

    Returns None where the map is not shift-invariant, or where it reads values that the true map has cut off: then the
    uncropped map differs from the true one and its symbol bounds nothing.
    """
    match map_:
        case Identity() if map_.in_shape == map_.out_shape:
            return support
        case ChannelScale():
            return support
        case Scaled():
            return propagate(map_.map, axis, support)
        case Sum():
            branches = [propagate(term, axis, support) for term in map_.terms]
            known = [branch for branch in branches if branch is not None]
            if len(known) < len(branches):
                return None
            return min(low for low, _ in known), max(high for _, high in known)
        case Composition():
            current: Interval | None = support
            for part in map_.parts:
                current = None if current is None else propagate(part, axis, current)
            return current
        case Convolution() if wraps(map_, axis):
            return _propagate_circular(map_, axis, support)
        case Convolution() if map_.padding_mode in ("zeros", "circular") or map_.padding[axis] == (0, 0):
            if not _reads_only_truth(map_, axis, support):
                return None
            low, high = support
            pad, reach, stride = _window(map_, axis)
            return -((reach - low - pad) // stride), (high + pad) // stride
        case TransposedConvolution():
            if not _reads_only_truth(map_, axis, support):
                return None
            low, high = support
            pad, reach, stride = _window(map_.forward_map, axis)
            return stride * low - pad, stride * high + reach - pad
    return None


def reads(map_: Convolution | TransposedConvolution, axis: int) -> Interval:
    """The input positions that the output image is computed from, padding included."""
    side = map_.out_shape[1 + axis]
    if isinstance(map_, TransposedConvolution):
        pad, reach, stride = _window(map_.forward_map, axis)
        return -((reach - pad) // stride), (side - 1 + pad) // stride
    pad, reach, stride = _window(map_, axis)
    return -pad, stride * (side - 1) + reach - pad


def wraps(map_: LinearMap, axis: int) -> bool:
    """Whether some part pads this axis circularly."""
    match map_:
        case Convolution():
            return map_.padding_mode == "circular" and map_.padding[axis] != (0, 0)
        case Scaled():
            return wraps(map_.map, axis)
        case Sum():
            return any(wraps(term, axis) for term in map_.terms)
        case Composition():
            return any(wraps(part, axis) for part in map_.parts)
    return False


def _window(convolution: Convolution, axis: int) -> tuple[int, int, int]:
    """Padding before the image, distance from the kernel's first to its last element, stride."""
    reach = (convolution.weight.shape[2 + axis] - 1) * convolution.dilation[axis]
    return convolution.padding[axis][0], reach, convolution.stride[axis]


def _reads_only_truth(map_: Convolution | TransposedConvolution, axis: int, support: Interval) -> bool:
    """Whether every position that is read and may be non-zero lies inside the true image."""
    low, high = reads(map_, axis)
    return max(low, support[0]) >= 0 and min(high, support[1]) <= map_.in_shape[1 + axis] - 1


def _propagate_circular(convolution: Convolution, axis: int, support: Interval) -> Interval | None:
    """Circular padding is exact on the torus of the image itself, when the stride divides it."""
    side, out_side = convolution.in_shape[1 + axis], convolution.out_shape[1 + axis]
    whole = side == out_side * convolution.stride[axis]
    return (0, out_side - 1) if whole and support[0] >= 0 and support[1] < side else None
