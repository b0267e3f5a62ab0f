"""Sorts and maxima as rounds of comparators, each of two linear maps and a ReLU, which have relaxations."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustres.certify.maps.coordinate_maps import Selection
from robustres.certify.maps.linear_map import LinearMap, Scaled, Shape, Sum
from robustres.certify.maps.nonlinear import Extremum, MaxPool, Sort
from robustres.certify.maps.sorting import in_groups, out_of_groups

# Largest number of values that are sorted together; more would need too many rounds of comparators.
MOST = 16


@dataclass(frozen=True, eq=False)
class Comparisons:
    """The rounds of comparators.

    entry: from the value to groups (G, n) of places. rounds: for each, the map to the differences b - a of its pairs,
    and the map that adds their positive parts to the first place of each pair and subtracts them from the second, so
    that the larger value comes first. exit: from the groups to the output.
    """

    entry: LinearMap
    rounds: tuple[tuple[LinearMap, LinearMap], ...]
    exit: LinearMap


def comparisons(piece: Sort | Extremum | MaxPool, shape: Shape, device: torch.device) -> Comparisons:
    """The comparators that compute `piece` on values of this shape."""
    groups, back, out_shape = _groups(piece, shape)
    count, size = groups.shape
    whole = not isinstance(piece, Extremum | MaxPool)
    if whole and size > MOST:
        raise NotImplementedError(f"sorts {size} values together, more than the {MOST} that have a relaxation")
    falls = isinstance(piece, Extremum) and not piece.largest
    rounds = []
    for first, second in _sorting_rounds(size) if whole else _maximum_rounds(size):
        pairs = (second, first) if falls else (first, second)
        kept = slice(0, 2) if whole else slice(1, 2) if falls else slice(0, 1)
        rounds.append(_round(count, size, *pairs, kept, device))
    entry = Selection(groups.flatten().to(device), shape, (count, size))
    return Comparisons(entry, tuple(rounds), Selection(back.flatten().to(device), (count, size), out_shape))


def _groups(piece: Sort | Extremum | MaxPool, shape: Shape) -> tuple[Tensor, Tensor, Shape]:
    """The places that are compared together (G, n), and the place of each output among them, largest first."""
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape)
    out_shape = piece.out_shape(shape)
    if isinstance(piece, MaxPool):
        windows = numbers[None]
        for axis, pixels in enumerate(piece.windows, start=len(shape) - len(piece.windows)):
            first = pixels.amax(dim=1, keepdim=True)  # padding is replaced by any pixel of the window
            chosen = torch.where(pixels < 0, first, pixels)
            taken = [windows.index_select(axis + 1, chosen[:, tap]) for tap in range(chosen.shape[1])]
            windows = torch.cat(taken)
        groups = windows.flatten(1).T
        return groups, torch.arange(len(groups)) * groups.shape[1], out_shape
    if isinstance(piece, Extremum):
        kept = [axis for axis in range(len(shape)) if axis not in piece.axes]
        groups = numbers.permute(*kept, *piece.axes).reshape(-1, torch.Size([shape[a] for a in piece.axes]).numel())
        return groups, torch.arange(len(groups)) * groups.shape[1], out_shape
    if piece.sorts is not None:
        parts = in_groups(numbers[None], piece.sorts)  # (1, groups, size, ...)
        groups = parts.movedim(2, -1).reshape(-1, piece.sorts.size)
        order = torch.arange(groups.numel()).reshape(*parts.movedim(2, -1).shape)
        if not piece.descending:
            order = order.flip(-1)
        return groups, out_of_groups(order.movedim(-1, 2), piece.sorts), out_shape
    groups = numbers.movedim(piece.along, -1).reshape(-1, shape[piece.along])
    order = torch.arange(groups.numel()).reshape(*numbers.movedim(piece.along, -1).shape)
    order = order if piece.descending else order.flip(-1)
    order = order if piece.count is None else order[..., : piece.count]
    return groups, order.movedim(-1, piece.along), out_shape


def _maximum_rounds(size: int) -> list[tuple[Tensor, Tensor]]:
    """A tournament: the first half against the second, until one place is left."""
    rounds = []
    while size > 1:
        half = (size + 1) // 2
        rounds.append((torch.arange(size - half), torch.arange(half, size)))
        size = half
    return rounds


def _sorting_rounds(size: int) -> list[tuple[Tensor, Tensor]]:
    """Odd-even transposition of neighbours: `size` rounds sort a group, one round a group of two."""
    if size == 2:
        return [(torch.tensor([0]), torch.tensor([1]))]
    starts = [torch.arange(turn % 2, size - 1, 2) for turn in range(size)]
    return [(start, start + 1) for start in starts if len(start)]


def _round(
    count: int, size: int, first: Tensor, second: Tensor, kept: slice, device: torch.device
) -> tuple[LinearMap, LinearMap]:
    """The maps to the differences of one round's pairs in every group, and from their positive parts: to both places of
    each pair, or only to the one that is used afterwards (`kept`)."""
    shape, pairs = (count, size), (count, len(first))
    base = size * torch.arange(count)[:, None]
    ahead, behind = (Selection((base + place).flatten().to(device), shape, pairs) for place in (first, second))
    spread: list[LinearMap] = []
    numbers = torch.arange(count * len(first)).reshape(pairs)
    for place, sign in ((first, 1.0), (second, -1.0)):
        target = torch.full(shape, -1)
        target[:, place] = numbers
        spread.append(Scaled(sign, Selection(target.flatten().to(device), pairs, shape)))
    return Sum((behind, Scaled(-1.0, ahead))), Sum(tuple(spread[kept]))
