"""The small training loop of the laboratory: cross-entropy, seeded, with a callback after every epoch.

The trainer of robustres.training is on the same layer, so it cannot be imported here, and does more than is needed.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int = 20,
    learning_rate: float = 5e-3,
    batch_size: int = 64,
    temperature: float = 1.0,
    parameters: Iterable[nn.Parameter] | None = None,
    after_step: Callable[[], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
    seed: int = 0,
) -> None:
    """Train in place with Adam and a cosine schedule; deterministic on a CPU.

    images (N, ...), labels (N,). temperature: factor on the logits in the cross-entropy; with a large factor, small
    margins suffice. parameters: the parameters to train, by default all. after_step: called after each update, for
    instance to project weights back. on_epoch: called with 0 before the first epoch and with its number after each
    epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(images) // batch_size)
    optimiser = torch.optim.Adam(list(parameters if parameters is not None else model.parameters()), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    if on_epoch is not None:
        on_epoch(0)
    for epoch in range(1, epochs + 1):
        for batch in torch.split(torch.randperm(len(images), generator=generator), batch_size):
            loss = functional.cross_entropy(temperature * model(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if after_step is not None:
                after_step()
        if on_epoch is not None:
            on_epoch(epoch)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images (N, ...) that are classified as their label (N,)."""
    return share(model(images).argmax(dim=1) == labels)


def share(mask: Tensor) -> float:
    """The share of True in a mask (N,)."""
    return float(mask.double().mean())
