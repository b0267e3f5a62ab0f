"""Square windows of images, one per image."""

import torch
from torch import Tensor


def window_index(batch: Tensor, top: Tensor, left: Tensor, channels: int, side: int) -> tuple[Tensor, ...]:
    """Advanced index of one square window in each image: batch (B,), corners (B,); picks (B, C, side, side)."""
    along = torch.arange(side, device=top.device)
    return (
        batch[:, None, None, None],
        torch.arange(channels, device=top.device)[None, :, None, None],
        (top[:, None] + along)[:, None, :, None],
        (left[:, None] + along)[:, None, None, :],
    )
