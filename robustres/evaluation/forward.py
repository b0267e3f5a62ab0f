"""The model's predictions on clean images."""

import torch
from torch import Tensor, nn

from robustres.evaluation.batches import in_batches
from robustres.precision import taking


def clean_logits(model: nn.Module, images: Tensor, *, batch_size: int, device: torch.device) -> Tensor:
    """Logits (N, classes) on the CPU of images (N, C, H, W)."""

    def answers(batch: slice) -> Tensor:
        given = images[batch].to(device, non_blocking=True)
        logits: Tensor = taking(model, given)(given)
        return logits.cpu()

    with torch.no_grad():
        return torch.cat(in_batches(answers, len(images), batch_size=batch_size))


def label_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label minus the largest other logit, (N,); negative if misclassified."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None]).squeeze(1) - others.amax(dim=1)
