"""Activations that never expand a distance."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustres.certify.bound import Bound
from robustres.certify.sector import GroupSort
from robustres.errors import ModelError

ActivationName = Literal["relu", "maxmin", "identity"]
ACTIVATIONS: tuple[ActivationName, ...] = get_args(ActivationName)


class MaxMin(nn.Module):
    """Channel i and channel i + C/2 become the larger and the smaller of the two: sorting in pairs.

    Locally a permutation, hence gradient-norm preserving and 1-Lipschitz in every norm (Anil, Lucas and Grosse 2019).
    C must be even.
    """

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.cat((torch.maximum(first, second), torch.minimum(first, second)), dim=1)

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """Exactly 1: sorting is a permutation wherever it is differentiable, and continuous."""
        return Bound(1.0, 1.0, "sorting in pairs")

    def sorted_groups(self) -> GroupSort:
        """Channel i with channel i + C/2."""
        return GroupSort(2, "strided")


def activation(name: ActivationName, channels: int) -> nn.Module:
    """The activation of that name for features of `channels` channels."""
    if name == "relu":
        return nn.ReLU()
    if name == "identity":
        return nn.Identity()
    if name != "maxmin":
        raise ModelError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    if channels % 2:
        raise ModelError(f"maxmin sorts channels in pairs and needs an even width, got {channels}")
    return MaxMin()
