"""The mean of several certified networks, in a form whose bound is close to the mean of their bounds."""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from robustres.errors import ModelError
from robustres.models.networks.materialise import materialise
from robustres.models.networks.residual_net import ResidualNet


class MeanNet(nn.Module):
    """The mean of the logits of networks with linear heads, as one linear head on the concatenation of their features.

    With k bodies of Lipschitz constant 1 the features have constant sqrt(k), and the difference of two rows of the head
    is that of the networks' rows, divided by k: a margin changes at most by the root mean square of the largest changes
    of the networks' margins. This equals their mean if they are equal, as they nearly are for networks with the same
    recipe.
    """

    def __init__(self, networks: Sequence[ResidualNet]) -> None:
        super().__init__()
        if not networks:
            raise ModelError("a mean needs at least one network")
        plain = [copy.deepcopy(materialise(network)) for network in networks]
        heads = [cast(nn.Linear, network.head) for network in plain]
        if len({(head.out_features, head.weight.dtype) for head in heads}) > 1:
            raise ModelError(
                "only networks with the same number of classes and the same floating-point type have a mean"
            )
        weight = torch.cat([head.weight.detach() for head in heads], dim=1) / len(heads)
        self.head = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(torch.stack([head.bias.detach() for head in heads]).mean(dim=0))
        for network in plain:
            network.head = nn.Identity()
        self.bodies = nn.ModuleList(plain)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([body(x) for body in self.bodies], dim=1))
        return logits
