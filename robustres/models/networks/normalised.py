"""Input normalisation as a part of the network, so that every eps and every radius is in pixel units."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustres.errors import ModelError


def normalised(
    model: nn.Module,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    *,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The model on normalised images, or as it is where no statistics are given; a mean alone is refused.

    So are statistics for a network that was read with its own, unless they are the same.
    """
    if mean is not None and std is None:
        raise ModelError(
            f"mean was given without std; give the std that the network was trained with as well, or std of "
            f"{','.join(['1'] * len(mean))} if it only subtracts the mean"
        )
    if std is None:
        return model
    given = Normalised(model, mean or (0.0,) * len(std), std, dtype=dtype)
    if isinstance(model, Normalised):
        if given.note != model.note:
            raise ModelError(f"{model.note} already, as it was published; leave mean and std out")
        return model
    return given


class Normalised(nn.Module):
    """model((x - mean) / std) for images x (N, C, H, W) in [0, 1].

    mean, std: one number per channel (or one for all); std > 0.
    dtype: the type in which the images are normalised, the one in which the model takes them.
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
        for name, values, largest in (("mean", mean, 1.0), ("std", std, 2.0)):
            if any(value > largest for value in values):
                found = f"{max(values):g}"
                raise ModelError(f"{name} must be in units of pixels in [0, 1], got {found}; did you mean {found}/255?")
        self.model = model
        self.register_buffer("mean", torch.tensor(tuple(mean), dtype=dtype).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std), dtype=dtype).reshape(1, -1, 1, 1))

    @property
    def note(self) -> str:
        """What is to be known about a network that was read with its normalisation."""
        mean, std = (", ".join(f"{value:.4g}" for value in row.flatten().tolist()) for row in (self.mean, self.std))
        return f"the network normalises its images (mean {mean}; std {std})"

    def forward(self, x: Tensor) -> Tensor:
        if self.mean.shape[1] not in {1, x.shape[1]}:
            raise ModelError(
                f"mean and std have {self.mean.shape[1]} channels but the images have {x.shape[1]}; give one number "
                "per channel"
            )
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits
