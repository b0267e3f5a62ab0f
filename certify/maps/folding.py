"""Folding of chains of linear maps into fewer maps: normalisation, scales and paddings join a convolution."""

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from robustres.certify.maps.convolution import Convolution, Padding
from robustres.certify.maps.coordinate_maps import Diagonal, Selection
from robustres.certify.maps.linear_map import Composition, Dense, Identity, LinearMap, Scaled, Sum
from robustres.numerics import gamma

# Two dense matrices are multiplied out when the product costs at most this many multiplications.
DENSE_PRODUCT = 200_000_000
# Smaller products lose digits; sums of products of at least this size are not affected by this loss.
SMALLEST_PRODUCT = 2.0**-1022
SMALLEST_SUM = 2.0**-900


def composed(maps: Iterable[LinearMap]) -> LinearMap:
    """The composition of maps, in the order in which they are applied, folded into as few maps as possible.

    The roundings that folding adds to the weights are counted in the folded map (`seen`), relative to |B| |A| if
    matrices are multiplied out. Maps whose product would overflow, or lose digits near the smallest numbers, are kept
    separate.
    """
    parts: list[LinearMap] = []
    factor, seen = 1.0, 0
    for map_ in maps:
        for part in map_.parts if isinstance(map_, Composition) else (map_,):
            while isinstance(part, Scaled):
                whole = factor * part.factor
                if SMALLEST_PRODUCT <= abs(whole) < math.inf or not (factor and part.factor):
                    factor, seen = whole, seen + part.seen + (1 if factor != 1 else 0)
                else:
                    parts.append(Scaled(part.factor, Identity(part.in_shape), part.seen))
                part = part.map
            parts.append(part)
    shape = parts[0].in_shape
    changed = True
    while changed:
        parts, changed = _one_pass(parts)
    if not parts:
        return Scaled(factor, Identity(shape), seen) if factor != 1 else Identity(shape)
    if factor != 1:
        parts = _rescaled(parts, factor, seen)
    return parts[0] if len(parts) == 1 else Composition(parts)


def _one_pass(parts: list[LinearMap]) -> tuple[list[LinearMap], bool]:
    kept = [part for part in parts if not (isinstance(part, Identity) and part.in_shape == part.out_shape)]
    for place, (inner, outer) in enumerate(pairwise(kept)):
        merged = _pair(inner, outer)
        if merged is not None:
            return [*kept[:place], merged, *kept[place + 2 :]], True
    return kept, False


def _pair(inner: LinearMap, outer: LinearMap) -> LinearMap | None:
    """`outer` after `inner` as one map, or None if both have to be kept."""
    match inner, outer:
        case Identity(), Identity():
            return Identity(inner.in_shape, outer.out_shape)
        case Identity(), (Dense() | Selection()):
            return replace(outer, in_shape=inner.in_shape)
        case ((Dense() | Selection()), Identity()):
            return replace(inner, out_shape=outer.out_shape)
        case Dense(), Dense() if inner.out_size * inner.in_size * outer.out_size <= DENSE_PRODUCT:
            return _multiplied_out(inner, outer)
        case Diagonal(), Diagonal() if inner.factors.ndim == outer.factors.ndim:
            factors = _scaled_weights(inner.factors, outer.factors)
            return None if factors is None else replace(inner, factors=factors, seen=inner.seen + outer.seen + 1)
        case Convolution(), Diagonal() if outer.of_channels:
            weight = _scaled_weights(inner.weight, outer.factors[:, None, None, None])
            return None if weight is None else replace(inner, weight=weight, seen=inner.seen + outer.seen + 1)
        case Diagonal(), Convolution() if inner.of_channels:
            per_group = inner.factors.reshape(outer.groups, 1, -1)
            per_output = per_group.expand(-1, outer.weight.shape[0] // outer.groups, -1).flatten(0, 1)
            weight = _scaled_weights(outer.weight, per_output[:, :, None, None])
            return None if weight is None else replace(outer, weight=weight, seen=inner.seen + outer.seen + 1)
        case Diagonal(), Dense():
            ones = torch.ones(1, *inner.in_shape, dtype=torch.float64, device=inner.device)
            return _scaled_dense(outer, inner(ones).flatten(), inner.seen + 1)
        case Selection(), Convolution() if outer.groups == 1 and (order := channel_order(inner)) is not None:
            return replace(outer, weight=outer.weight[:, order.argsort()])
        case Convolution(), Selection() if inner.groups == 1 and (order := channel_order(outer)) is not None:
            return replace(inner, weight=inner.weight[order])
        case Dense(), Selection() if bool((outer.index >= 0).all()):
            magnitude = None if inner.magnitude is None else inner.magnitude[outer.index]
            return Dense(inner.matrix[outer.index], inner.in_shape, outer.out_shape, inner.seen, magnitude)
        case Selection(), Convolution() if all(pads == (0, 0) for pads in outer.padding):
            return _padded(inner, outer)
        case Selection(), Selection():
            index = torch.cat([inner.index, inner.index.new_full((1,), -1)])[outer.index]
            return Selection(index, inner.in_shape, outer.out_shape)
    return None


def _multiplied_out(inner: Dense, outer: Dense) -> Dense | None:
    """The product of two matrices, with roundings relative to the product of their magnitudes."""
    left, right = outer.absolute().matrix, inner.absolute().matrix
    matrix = outer.matrix @ inner.matrix
    magnitude = (left @ right) * (1 + gamma(left.shape[1] + 2))
    small = (magnitude < SMALLEST_SUM) & ((left != 0).to(left) @ (right != 0).to(right) > 0)
    if bool(small.any()) or not bool(torch.isfinite(magnitude).all()):
        return None
    seen = inner.seen + outer.seen + left.shape[1] + 1
    return Dense(matrix, inner.in_shape, outer.out_shape, seen, magnitude)


def _scaled_dense(map_: Dense, columns: Tensor, roundings: int) -> Dense | None:
    """The matrix with its columns multiplied by factors with this number of roundings, including the product."""
    matrix = _scaled_weights(map_.matrix, columns)
    if matrix is None:
        return None
    magnitude = map_.magnitude
    if magnitude is not None:
        magnitude = _scaled_weights(magnitude, columns.abs() * (1 + gamma(roundings + 2)))
        if magnitude is None:
            return None
    return replace(map_, matrix=matrix, seen=map_.seen + roundings, magnitude=magnitude)


def _scaled_weights(weights: Tensor, factors: Tensor) -> Tensor | None:
    """The products, each within one rounding; None if one overflows or loses digits."""
    products = weights * factors
    accurate = (products.abs() >= SMALLEST_PRODUCT) & torch.isfinite(products)
    return products if bool((accurate | (weights == 0) | (factors == 0)).all()) else None


def channel_order(selection: Selection) -> Tensor | None:
    """(C,): the input channel of each output channel, if the selection only reorders whole channels; else None."""
    if selection.in_shape != selection.out_shape or len(selection.in_shape) != 3 or bool((selection.index < 0).any()):
        return None
    positions = math.prod(selection.in_shape[1:])
    rows = selection.index.reshape(-1, positions)
    order = rows[:, 0].div(positions, rounding_mode="floor")
    places = torch.arange(positions, device=rows.device)
    whole = torch.equal(rows, order[:, None] * positions + places)
    return order if whole and len(torch.unique(order)) == len(order) else None


def _padded(selection: Selection, convolution: Convolution) -> Convolution | None:
    """A padding in the form of a selection, merged into the convolution that follows."""
    channels, height, width = selection.in_shape if len(selection.in_shape) == 3 else (0, 0, 0)
    if len(selection.out_shape) != 3 or channels != selection.out_shape[0]:
        return None
    extra = selection.out_shape[1] - height, selection.out_shape[2] - width
    if min(extra) < 0:
        return None
    numbers = torch.arange(1, 1 + math.prod(selection.in_shape), dtype=torch.float64, device=selection.device)
    image = numbers.reshape(1, *selection.in_shape)
    wanted = (selection.index + 1).reshape(1, *selection.out_shape)
    for top in range(extra[0] + 1):
        for left in range(extra[1] + 1):
            pads: Padding = ((top, extra[0] - top), (left, extra[1] - left))
            fits = all(max(pair) <= side for pair, side in zip(pads, (height, width), strict=True))
            for circular in (False, True) if fits else (False,):
                padded = F.pad(image, (*pads[1], *pads[0]), mode="circular" if circular else "constant")
                if torch.equal(padded.to(torch.int64), wanted):
                    return replace(convolution, in_shape=selection.in_shape, padding=pads, circular=circular)
    return None


def _rescaled(parts: list[LinearMap], factor: float, seen: int) -> list[LinearMap]:
    """Multiply the first map that has suitable weights by a number; without such a map, prepend the factor."""
    for place, part in enumerate(parts):
        scaled = _times(part, factor, seen + 1)
        if scaled is not None:
            return [*parts[:place], scaled, *parts[place + 1 :]]
    return [Scaled(factor, parts[0], seen), *parts[1:]]


def _times(map_: LinearMap, factor: float, roundings: int) -> LinearMap | None:
    """The map with its weights multiplied by the number; None if it has none or they would lose digits."""
    number = torch.tensor(factor, dtype=torch.float64, device=map_.device)
    match map_:
        case Dense():
            return _scaled_dense(map_, number, roundings)
        case Convolution():
            weight = _scaled_weights(map_.weight, number)
            return None if weight is None else replace(map_, weight=weight, seen=map_.seen + roundings)
        case Diagonal():
            factors = _scaled_weights(map_.factors, number)
            return None if factors is None else replace(map_, factors=factors, seen=map_.seen + roundings)
    return None


def added(maps: Iterable[LinearMap]) -> LinearMap:
    """The sum of the maps, nested sums flattened."""
    terms = [term for map_ in maps for term in (map_.terms if isinstance(map_, Sum) else (map_,))]
    return terms[0] if len(terms) == 1 else Sum(terms)
