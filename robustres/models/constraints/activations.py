"""Activations that never expand a distance."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.certify.maps.sector import GroupSort
from robustres.certify.proof.bound import Bound
from robustres.errors import ModelError

ActivationName = Literal["relu", "maxmin", "half-abs", "identity"]
ACTIVATIONS: tuple[ActivationName, ...] = get_args(ActivationName)


class MaxMin(nn.Module):
    """Channel i and channel i + C/2 become the larger and the smaller of the two: sorting in pairs.

    Locally a permutation, hence gradient-norm preserving and 1-Lipschitz in every norm (Anil, Lucas and Grosse 2019).
    C must be even.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.requires_grad:
            sorted_: Tensor = _SortedPairs.apply(x)
            return sorted_
        first, second = x.chunk(2, dim=1)
        return torch.cat((torch.maximum(first, second), torch.minimum(first, second)), dim=1)

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """Exactly 1: sorting is a permutation wherever it is differentiable, and continuous. ModelError for odd C."""
        _require_pairs(input_shape[0])
        return Bound(1.0, 1.0, "sorting in pairs")

    def sorted_groups(self) -> GroupSort:
        """Channel i with channel i + C/2."""
        return GroupSort(2, "strided")


class _SortedPairs(torch.autograd.Function):
    """The same function with a gradient in three passes over the features instead of eight, since this dominates the
    memory traffic of training.

    For a pair of equal values the gradient passes unchanged; torch.maximum would halve it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.cat((torch.maximum(first, second), torch.minimum(first, second)), dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        first, second = inputs[0].chunk(2, dim=1)
        ctx.save_for_backward(first < second)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (swapped,) = ctx.saved_tensors
        larger, smaller = gradients[0].chunk(2, dim=1)
        exchange = (smaller - larger) * swapped
        return torch.cat((larger + exchange, smaller - exchange), dim=1)


class HalfAbs(nn.Module):
    """|x| on the first half of the channels, x on the others: slopes of size 1 everywhere, so no gradient is lost.

    Lipschitz constant: exactly 1 in every norm.
    """

    slopes: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        ones = torch.ones(channels - channels // 2)
        self.register_buffer("slopes", torch.cat((-torch.ones(channels // 2), ones)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.requires_grad:
            folded: Tensor = _HalfAbs.apply(x)
            return folded
        return functional.prelu(x, self.slopes.to(x.dtype))


class _HalfAbs(torch.autograd.Function):
    """The same function in one pass in each direction, in whatever memory layout the features have."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        out = x.clone()
        out[:, : x.shape[1] // 2].abs_()
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0][:, : output.shape[1] // 2].sign())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (sign,) = ctx.saved_tensors
        gradient = gradients[0].clone()
        gradient[:, : sign.shape[1]].mul_(sign)
        return gradient


def activation(name: ActivationName, channels: int) -> nn.Module:
    """The activation of that name for features of `channels` channels."""
    if name == "relu":
        return nn.ReLU()
    if name == "identity":
        return nn.Identity()
    if name == "half-abs":
        return HalfAbs(channels)
    if name != "maxmin":
        raise ModelError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    _require_pairs(channels)
    return MaxMin()


def _require_pairs(channels: int) -> None:
    if channels % 2:
        raise ModelError(f"maxmin sorts channels in pairs and needs an even width, got {channels}")
