"""Early exits of a given network: its logits when the last residual blocks are reduced to their shortcuts."""

import torch
from torch import Tensor
from torch.nn import functional

from robustres.dynamics.measures.dissection import Dissection


def leave(network: Dissection, values: Tensor, position: int) -> Tensor:
    """Logits when the network stops at state `position` (N, ...): every later residual block is reduced to its
    shortcut, and everything else, including the head, is unchanged. Differentiable.
    """
    for later in range(position, len(network.pieces)):
        if network.pieces[later].is_residual:
            values = network.skip(later, values)
        else:
            values = network.run(values, later, later + 1)
    return values


def exit_logits(network: Dissection, states: list[Tensor]) -> list[Tensor]:
    """Logits (N, classes) of every early exit: before the first residual block, then after each of them."""
    with torch.no_grad():
        first = leave(network, states[network.residual[0]], network.residual[0])
        return [first, *(leave(network, states[position + 1], position + 1) for position in network.residual)]


def exit_descent(network: Dissection, values: Tensor, position: int, labels: Tensor) -> Tensor:
    """Minus the gradient of the cross-entropy of the exit at state `position`, with respect to that state (N, ...)."""
    values = values.detach().requires_grad_()
    loss = functional.cross_entropy(leave(network, values, position), labels, reduction="sum")
    gradient: Tensor = torch.autograd.grad(loss, values)[0]
    return -gradient
