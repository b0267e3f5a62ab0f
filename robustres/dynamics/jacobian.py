"""Whole Jacobians at samples, for states small enough to hold one."""

from collections.abc import Callable

import torch
from torch import Tensor

# Larger states are not decomposed: their Jacobian would be a matrix of this many rows.
LARGEST_STATE = 1024


def jacobians(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(N, outputs, inputs): the Jacobian of a function that treats the samples of x (N, ...) one by one.

    >>> jacobians(lambda x: 2 * x, torch.ones(1, 2))
    tensor([[[2., 0.],
             [0., 2.]]])
    """
    x = x.detach().requires_grad_()
    y = function(x).flatten(1)
    rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0].flatten(1) for column in y.unbind(dim=1)]
    return torch.stack(rows, dim=1)
