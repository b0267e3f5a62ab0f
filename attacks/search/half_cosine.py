"""The schedule of step lengths that most searches here share."""

import math

import torch
from torch import Tensor


def half_cosine(age: Tensor, steps: int | Tensor) -> Tensor:
    """A factor that falls from 1 at age 0 to 0 at `steps` along half a cosine, in the type of the age.

    >>> half_cosine(torch.tensor([0.0, 5.0, 10.0]), 10)
    tensor([1.0000, 0.5000, 0.0000])
    """
    fall: Tensor = 0.5 * (1 + torch.cos(math.pi * age / steps))
    return fall
