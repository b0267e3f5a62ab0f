"""One encoded image becomes pixels."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from robustres.errors import DataError


def header(file: Path | BinaryIO, name: str) -> tuple[int, int, int]:
    """(C, H, W) that `decoded` will give, without decoding; DataError where this is no image."""
    try:
        with Image.open(file) as image:
            return (1 if image.mode == "L" else 3), image.height, image.width
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise unreadable(name, error) from error


def decoded(file: Path | BinaryIO, name: str, *, shape: tuple[int, int, int], first: str) -> Tensor:
    """Pixels as uint8 (C, H, W); DataError where the image is damaged or has another shape than the first one."""
    try:
        with Image.open(file) as image:
            pixels = np.array(image if image.mode == "L" else image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise unreadable(name, error) from error
    found = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)
    if found.shape != shape:
        raise DataError(
            f"{name} has shape {tuple(found.shape)} (channels, height, width) but {first} has {shape}; "
            "bring all images to one size first"
        )
    return found


def unreadable(name: str, error: Exception) -> DataError:
    """The error for an image that cannot be read."""
    return DataError(f"cannot read the image {name} ({error}); repair or remove it")
