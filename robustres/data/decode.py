"""Decodes an image to pixels at their true values, or refuses it by name; nothing is clipped or guessed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from robustres.errors import DataError

# Limit on the pixels of one image, checked before anything is decoded.
LARGEST_IMAGE = 2**26
GREY = frozenset({"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I", "F"})
COLOUR = frozenset({"RGB", "RGBA", "RGBX", "RGBa", "P", "PA"})
SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
# Formats whose mode "I" has 16 bits; in others it has 32 bits with an unknown range.
SCALED_TO_16_BITS = frozenset({"PNG", "PPM"})
ORIENTATION, SIDEWAYS = 0x0112, frozenset({5, 6, 7, 8})  # of EXIF
CURES = {
    "CMYK": "its colours depend on an ink profile",
    "YCbCr": "its colours can be converted in several ways",
    "LAB": "its colours can be converted in several ways",
    "HSV": "its colours can be converted in several ways",
}


def header(file: Path | BinaryIO, name: str) -> tuple[int, int, int]:
    """(C, H, W) that `decoded` will return, without decoding; raises DataError if this is not an image that can be
    read.
    """
    with _opened(file, name) as image:
        return _shape(image)


def decoded(file: Path | BinaryIO, name: str, *, shape: tuple[int, int, int], first: str) -> Tensor:
    """Pixels in [0, 1] as float32 (C, H, W), rotated according to the EXIF orientation.

    Supported are greyscale with 1, 8 and 16 bits, float, RGB, palettes, and opaque images with alpha. Raises DataError
    if the image is damaged, has a different shape from the first one, is animated, is partly transparent, or has
    colours or numbers whose value on [0, 1] is not known.
    """
    with _opened(file, name) as image:
        if (found := _shape(image)) != shape:
            raise DataError(
                f"{name} has shape {found} (channels, height, width) but {first} has {shape}; "
                "bring all images to one size first"
            )
        return _pixels(image, name)


@contextmanager
def _opened(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """The image, not decoded yet; any error inside a decoder becomes a DataError."""
    try:
        with Image.open(file) as image:
            _require_readable(image, name)
            yield image
    except DataError:
        raise
    except Exception as error:  # decoders read foreign files and may raise anything
        raise unreadable(name, error) from error


def _require_readable(image: Image.Image, name: str) -> None:
    if image.width * image.height > LARGEST_IMAGE:
        raise DataError(
            f"{name} claims to have {image.width} x {image.height} pixels, more than {LARGEST_IMAGE}; make it smaller"
        )
    if image.mode not in GREY | COLOUR:
        why = CURES.get(image.mode, "it is not known how its numbers map to [0, 1]")
        raise DataError(f"{name} is in {image.mode} and {why}; convert it to RGB as intended")
    if image.mode == "I" and image.format not in SCALED_TO_16_BITS:
        raise DataError(
            f"{name} contains 32-bit integers, whose largest value is not known; store it with 8 or 16 bits, or as "
            "floats in [0, 1]"
        )
    if image.mode in COLOUR and any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        raise DataError(
            f"{name} has 16-bit colours, which would lose their lower 8 bits here; store the images as floats in "
            "npy:DIR, or with 8 bits"
        )
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a photo with an embedded preview
        raise DataError(f"{name} has {image.n_frames} frames; keep one of them")  # type: ignore[attr-defined]


def _shape(image: Image.Image) -> tuple[int, int, int]:
    sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
    height, width = (image.width, image.height) if sideways else (image.height, image.width)
    return (1 if image.mode in GREY else 3), height, width


def _pixels(image: Image.Image, name: str) -> Tensor:
    if "transparency" in image.info or image.mode in {"LA", "La", "RGBA", "RGBa", "PA"}:
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
        if lowest < 255:  # type: ignore[operator]
            raise DataError(f"{name} is partly transparent; composite it onto the intended background")
    image = ImageOps.exif_transpose(image)
    if image.mode in SIXTEEN_BITS or image.mode == "I":
        pixels = np.asarray(image).astype(np.float32) / 65535
    elif image.mode == "F":
        pixels = np.array(image, dtype=np.float32)
    else:
        pixels = np.asarray(image.convert("L" if image.mode in GREY else "RGB")).astype(np.float32) / 255
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


def unreadable(name: str, error: Exception) -> DataError:
    """The error for an image that cannot be read."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"cannot read the image {name} ({reason}); repair or remove it")
