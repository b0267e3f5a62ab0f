"""Certified margins of a network whose part before the linear head is non-expansive."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def row_distances(head: nn.Linear, labels: Tensor) -> Tensor:
    """|w_j - w_y| for every class j and each label y, (N, classes): how fast z_y - z_j can change.

    The derivative at w_j = w_y (j = y) is set to 0, so that training stays finite.
    """
    square = (head.weight[None] - head.weight[:, None]).square().sum(dim=2)
    own = torch.eye(head.out_features, dtype=torch.bool, device=square.device)
    return torch.where(own, 1.0, square).sqrt().masked_fill(own, 0.0)[labels]


def pairwise_radii(logits: Tensor, labels: Tensor, distances: Tensor, body: Tensor | float = 1.0) -> Tensor:
    """(z_y - z_j) / (L |w_y - w_j|), (N, classes), infinite for j = y; negative where class j wins.

    body: Lipschitz constant L of everything before the head. With an estimate of L these are not certificates: they
        serve the loss and the selection of an epoch.
    """
    own = functional.one_hot(labels, logits.shape[1]).bool()
    margins = logits.gather(1, labels[:, None]) - logits
    return (margins / (body * distances).clamp_min(1e-12)).masked_fill(own, torch.inf)
