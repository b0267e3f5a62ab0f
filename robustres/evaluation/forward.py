"""The model's answers on clean images, batch by batch."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def clean_logits(
    model: nn.Module,
    images: Tensor,
    *,
    batch_size: int,
    device: torch.device,
    done: Callable[[int], None] | None = None,
) -> Tensor:
    """Logits (N, classes) on the CPU of images (N, C, H, W); `done` is told how many samples each batch had."""
    rows = []
    with torch.no_grad():
        for batch in images.split(batch_size):
            rows.append(model(batch.to(device)).cpu())
            if done is not None:
                done(len(batch))
    return torch.cat(rows)


def label_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the largest other logit, (N,); negative where misclassified."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None]).squeeze(1) - others.amax(dim=1)
