"""Input normalisation as a part of the network, so that every eps and every radius is in pixel units."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustres.errors import ModelError


class Normalised(nn.Module):
    """model((x - mean) / std) for images x (N, C, H, W) in [0, 1].

    mean, std: one number per channel (or one for all); std > 0.
    dtype: in which the images are normalised, that in which the model takes them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], *, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ModelError(f"mean and std must have one number per channel each, got {len(mean)} and {len(std)}")
        if not all(0 < value < float("inf") for value in std):
            raise ModelError(f"std must be positive, got {', '.join(f'{value:g}' for value in std)}")
        self.model = model
        self.register_buffer("mean", torch.tensor(tuple(mean), dtype=dtype).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std), dtype=dtype).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.mean.shape[1] not in {1, x.shape[1]}:
            raise ModelError(
                f"mean and std have {self.mean.shape[1]} channels but the images have {x.shape[1]}; give one number "
                "per channel"
            )
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits
