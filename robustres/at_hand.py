"""Images and labels in memory: tensors, NumPy arrays and lists become tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustres.errors import DataError


def images_tensor(value: Any) -> Tensor:
    """Images as a tensor without a gradient; 8-bit images (uint8) are divided by 255, other types are unchanged.

    Bytes that are all 0 or 1 are left unchanged, so that they are refused: they look like images that lost their
    fractional part.
    """
    images = _tensor(value, "images").detach()
    images = images.clone() if images.is_inference() and not torch.is_inference_mode_enabled() else images
    if images.ndim == 4 and images.shape[1] > 4 >= images.shape[3] and not isinstance(value, Tensor):
        raise DataError(
            f"images must have shape (N, C, H, W), got {tuple(images.shape)}, whose last axis looks like the channel "
            "axis; move it with images.transpose(0, 3, 1, 2)"
        )
    in_bytes = images.dtype == torch.uint8 and images.numel() > 0 and int(images.max()) > 1
    return images.float() / 255 if in_bytes else images


def labels_tensor(value: Any) -> Tensor:
    """Labels as a tensor; integers become int64, other types are unchanged."""
    labels = _tensor(value, "labels").detach()
    whole = not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
    return labels.to(torch.int64) if whole else labels


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) for part in value):
            return torch.stack(list(value))
        if isinstance(value, np.ndarray):  # also with another byte order or negative strides
            value = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
        return torch.as_tensor(value)
    except Exception as error:  # NumPy, torch or the value's own class may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{name} must be a tensor, an array or a list of numbers, got {type(value).__name__} ({reason})"
        ) from error
