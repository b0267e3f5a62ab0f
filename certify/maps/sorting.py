"""Sorting within groups of channels in all its forms: along an axis, as maximum and minimum, or as stated by a module.

A sort is 1-Lipschitz everywhere; inside a residual branch the joint bound needs the groups (`sector`). The order and
position in which the members of a group appear in the output does not matter: any fixed permutation of them satisfies
the same inequality.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from robustres.certify.maps.folding import composed
from robustres.certify.maps.linear_map import Composition, Dense, Identity, LinearMap, Shape
from robustres.certify.maps.sector import GroupSort


def groups_along(axis: int, shape: Shape, channels: Shape) -> GroupSort | None:
    """A sort along one axis of a tensor as a sort of channels of the same numbers in the shape `channels` (C, ...).

    >>> groups_along(1, (3, 2, 4, 4), (6, 4, 4)), groups_along(0, (2, 3, 4, 4), (6, 4, 4))
    (GroupSort(size=2, layout='adjacent'), GroupSort(size=2, layout='strided'))
    """
    size, apart, positions = shape[axis], math.prod(shape[axis + 1 :]), math.prod(channels[1:])
    if size < 2 or apart % positions:
        return None
    if apart == positions:
        return GroupSort(size, "adjacent")
    return GroupSort(size, "strided") if math.prod(shape[:axis]) == 1 else None


def before_reshape(map_: LinearMap | None, shape: Shape) -> tuple[LinearMap | None, Shape]:
    """The map without its final reshape, and its output shape then; `shape` is the shape of its output."""
    match map_:
        case Identity():
            return None, map_.in_shape
        case Composition() if isinstance(map_.parts[-1], Identity):
            return composed(map_.parts[:-1]), map_.parts[-1].in_shape
        case Dense():
            return replace(map_, out_shape=(len(map_.matrix),)), (len(map_.matrix),)
    return map_, shape


def in_groups(values: Tensor, groups: GroupSort) -> Tensor:
    """(B, C, ...) as (B, groups, size, ...)."""
    count, channels, *image = values.shape
    if groups.layout == "adjacent":
        return values.reshape(count, channels // groups.size, groups.size, *image)
    return values.reshape(count, groups.size, channels // groups.size, *image).transpose(1, 2)


def out_of_groups(values: Tensor, groups: GroupSort) -> Tensor:
    """(B, groups, size, ...) as (B, C, ...), the inverse of `in_groups`."""
    return (values if groups.layout == "adjacent" else values.transpose(1, 2)).flatten(1, 2)


def sorts_as_stated(module: nn.Module, groups: GroupSort, shape: Shape, device: torch.device) -> bool:
    """Whether the module permutes random inputs within the groups, and puts each group in a fixed order."""
    if shape[0] % groups.size:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, *shape, dtype=torch.float64, generator=generator).to(device)
    with torch.no_grad():
        answer = module(x)
    if answer.shape != x.shape:
        return False
    came, expected = in_groups(answer, groups), in_groups(x, groups).sort(dim=2).values
    order = came[:1].argsort(dim=2)
    return torch.equal(came.gather(2, order.expand_as(came)), expected)
