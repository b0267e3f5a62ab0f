"""Chains of linear maps written as fewer maps: batch normalisation, scales and paddings go into their convolution."""

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from robustres.certify.maps.convolution import Convolution, Padding, PaddingMode
from robustres.certify.maps.coordinate_maps import Diagonal, Selection
from robustres.certify.maps.linear_map import ChannelScale, Composition, Dense, Identity, LinearMap, Scaled, Sum

# Two dense matrices are multiplied out when the product costs at most this many multiplications.
DENSE_PRODUCT = 200_000_000


def composed(maps: Iterable[LinearMap]) -> LinearMap:
    """The maps one after the other, in the order in which they are applied, folded into as few as possible.

    Folding multiplies weights in float64, which moves each weight by a relative 2^-53 per fold; the slack of the norms
    is larger than that by orders of magnitude (section 6 of the mathematics counts n roundings per product).
    """
    parts: list[LinearMap] = []
    factor = 1.0
    for map_ in maps:
        for part in map_.parts if isinstance(map_, Composition) else (map_,):
            while isinstance(part, Scaled):
                factor, part = factor * part.factor, part.map
            parts.append(part)
    shape = parts[0].in_shape
    changed = True
    while changed:
        parts, changed = _one_pass(parts)
    if not parts:
        return Scaled(factor, Identity(shape)) if factor != 1 else Identity(shape)
    if factor != 1:
        parts = _rescaled(parts, factor)
    return parts[0] if len(parts) == 1 else Composition(parts)


def _one_pass(parts: list[LinearMap]) -> tuple[list[LinearMap], bool]:
    kept = [part for part in parts if not (isinstance(part, Identity) and part.in_shape == part.out_shape)]
    for place, (inner, outer) in enumerate(pairwise(kept)):
        merged = _pair(inner, outer)
        if merged is not None:
            return [*kept[:place], merged, *kept[place + 2 :]], True
    return kept, False


def _pair(inner: LinearMap, outer: LinearMap) -> LinearMap | None:
    """`outer` after `inner` as one map, where that is one."""
    match inner, outer:
        case Identity(), Identity():
            return Identity(inner.in_shape, outer.out_shape)
        case Identity(), Dense():
            return Dense(outer.matrix, inner.in_shape, outer.out_shape)
        case Dense(), Identity():
            return Dense(inner.matrix, inner.in_shape, outer.out_shape)
        case Dense(), Dense() if inner.out_size * inner.in_size * outer.out_size <= DENSE_PRODUCT:
            return Dense(outer.matrix @ inner.matrix, inner.in_shape, outer.out_shape)
        case ChannelScale(), ChannelScale():
            return ChannelScale(inner.scale * outer.scale, inner.in_shape)
        case Convolution(), ChannelScale():
            return replace(inner, weight=inner.weight * outer.scale[:, None, None, None])
        case ChannelScale(), Convolution():
            per_group = inner.scale.reshape(outer.groups, 1, -1)
            per_output = per_group.expand(-1, outer.weight.shape[0] // outer.groups, -1).flatten(0, 1)
            return replace(outer, weight=outer.weight * per_output[:, :, None, None])
        case ((ChannelScale() | Diagonal()), Dense()):
            ones = torch.ones(1, *inner.in_shape, dtype=torch.float64, device=inner.device)
            return Dense(outer.matrix * inner(ones).flatten(), inner.in_shape, outer.out_shape)
        case Selection(), Convolution() if outer.groups == 1 and (order := channel_order(inner)) is not None:
            return replace(outer, weight=outer.weight[:, order.argsort()])
        case Convolution(), Selection() if inner.groups == 1 and (order := channel_order(outer)) is not None:
            return replace(inner, weight=inner.weight[order])
        case Dense(), Selection() if bool((outer.index >= 0).all()):
            return Dense(inner.matrix[outer.index], inner.in_shape, outer.out_shape)
        case Selection(), Convolution() if all(pads == (0, 0) for pads in outer.padding):
            return _padded(inner, outer)
        case Selection(), Selection():
            index = torch.cat([inner.index, inner.index.new_full((1,), -1)])[outer.index]
            return Selection(index, inner.in_shape, outer.out_shape)
        case Selection(), Identity():
            return Selection(inner.index, inner.in_shape, outer.out_shape)
        case Identity(), Selection():
            return Selection(outer.index, inner.in_shape, outer.out_shape)
    return None


def channel_order(selection: Selection) -> Tensor | None:
    """(C,) the input channel of each output channel, where the selection reorders whole channels and nothing else."""
    if selection.in_shape != selection.out_shape or len(selection.in_shape) != 3:
        return None
    positions = math.prod(selection.in_shape[1:])
    rows = selection.index.reshape(-1, positions)
    order = rows[:, 0].div(positions, rounding_mode="floor")
    places = torch.arange(positions, device=rows.device)
    whole = torch.equal(rows, order[:, None] * positions + places)
    return order if whole and len(torch.unique(order)) == len(order) else None


def _padded(selection: Selection, convolution: Convolution) -> Convolution | None:
    """A padding written as a selection, put into the convolution that follows."""
    channels, height, width = selection.in_shape if len(selection.in_shape) == 3 else (0, 0, 0)
    if len(selection.out_shape) != 3 or channels != selection.out_shape[0]:
        return None
    extra = selection.out_shape[1] - height, selection.out_shape[2] - width
    if min(extra) < 0:
        return None
    numbers = torch.arange(1, 1 + math.prod(selection.in_shape), dtype=torch.float64, device=selection.device)
    image = numbers.reshape(1, *selection.in_shape)
    wanted = (selection.index + 1).reshape(1, *selection.out_shape)
    modes: tuple[PaddingMode, ...] = ("zeros", "reflect", "replicate", "circular")
    for top in range(extra[0] + 1):
        for left in range(extra[1] + 1):
            pads: Padding = ((top, extra[0] - top), (left, extra[1] - left))
            for mode in modes:
                if mode in ("reflect", "circular") and not _room(mode, pads, (height, width)):
                    continue
                flat = (*pads[1], *pads[0])
                padded = F.pad(image, flat, mode="constant" if mode == "zeros" else mode)
                if torch.equal(padded.to(torch.int64), wanted):
                    return replace(convolution, in_shape=selection.in_shape, padding=pads, padding_mode=mode)
    return None


def _room(mode: PaddingMode, pads: Padding, image: tuple[int, int]) -> bool:
    limit = 1 if mode == "reflect" else 0
    return all(max(pair) <= side - limit for pair, side in zip(pads, image, strict=True))


def _rescaled(parts: list[LinearMap], factor: float) -> list[LinearMap]:
    """A number put into the first map that has weights; a factor in front where there is none."""
    for place, part in enumerate(parts):
        match part:
            case Dense():
                scaled: LinearMap = Dense(factor * part.matrix, part.in_shape, part.out_shape)
            case Convolution():
                scaled = replace(part, weight=factor * part.weight)
            case ChannelScale():
                scaled = ChannelScale(factor * part.scale, part.in_shape)
            case _:
                continue
        return [*parts[:place], scaled, *parts[place + 1 :]]
    return [Scaled(factor, parts[0]), *parts[1:]]


def added(maps: Iterable[LinearMap]) -> LinearMap:
    """The sum of the maps, nested sums flattened."""
    terms = [term for map_ in maps for term in (map_.terms if isinstance(map_, Sum) else (map_,))]
    return terms[0] if len(terms) == 1 else Sum(terms)
