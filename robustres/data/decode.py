"""One encoded image becomes pixels at their true value, or is refused by name; nothing is clipped or guessed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from robustres.errors import DataError

# Pixels of one image, before anything is decoded.
LARGEST_IMAGE = 2**26
GREY = frozenset({"1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I", "F"})
COLOUR = frozenset({"RGB", "RGBA", "RGBX", "RGBa", "P", "PA"})
SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
# Formats whose mode "I" holds 16 bits; elsewhere it is 32 bits of no known range.
SCALED_TO_16_BITS = frozenset({"PNG", "PPM"})
ORIENTATION, SIDEWAYS = 0x0112, frozenset({5, 6, 7, 8})  # of EXIF
CURES = {
    "CMYK": "its colours depend on an ink profile",
    "YCbCr": "its colours have several conversions",
    "LAB": "its colours have several conversions",
    "HSV": "its colours have several conversions",
}


def header(file: Path | BinaryIO, name: str) -> tuple[int, int, int]:
    """(C, H, W) that `decoded` will give, without decoding; DataError where this is no image that is read here."""
    with _opened(file, name) as image:
        return _shape(image)


def decoded(file: Path | BinaryIO, name: str, *, shape: tuple[int, int, int], first: str) -> Tensor:
    """Pixels in [0, 1] as float32 (C, H, W), turned as the camera says.

    Greyscale of 1, 8 and 16 bits, float, RGB, palettes, and opaque images with alpha. DataError where the image is
    damaged, has another shape than the first one, moves, is partly transparent, or is in colours or numbers whose value
    on [0, 1] is not known.
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
    """The image, not decoded yet; whatever goes wrong inside a decoder becomes a DataError."""
    try:
        with Image.open(file) as image:
            _require_readable(image, name)
            yield image
    except DataError:
        raise
    except Exception as error:  # decoders meet what others wrote, and raise anything
        raise unreadable(name, error) from error


def _require_readable(image: Image.Image, name: str) -> None:
    if image.width * image.height > LARGEST_IMAGE:
        raise DataError(
            f"{name} says that it has {image.width} x {image.height} pixels, more than {LARGEST_IMAGE}; make it smaller"
        )
    if image.mode not in GREY | COLOUR:
        why = CURES.get(image.mode, "it is not known how its numbers lie on [0, 1]")
        raise DataError(f"{name} is in {image.mode} and {why}; convert it to RGB as you mean it")
    if image.mode == "I" and image.format not in SCALED_TO_16_BITS:
        raise DataError(
            f"{name} holds 32-bit integers, of which it is not known what 1 is; store it with 8 or 16 bits, or as "
            "floats in [0, 1]"
        )
    if image.mode in COLOUR and any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        raise DataError(
            f"{name} has colours of 16 bits, which would lose their lower half here; store the images as floats in "
            "npy:DIR, or with 8 bits"
        )
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a photo with a preview beside it
        raise DataError(f"{name} has {image.n_frames} frames; keep one of them")  # type: ignore[attr-defined]


def _shape(image: Image.Image) -> tuple[int, int, int]:
    sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
    height, width = (image.width, image.height) if sideways else (image.height, image.width)
    return (1 if image.mode in GREY else 3), height, width


def _pixels(image: Image.Image, name: str) -> Tensor:
    if "transparency" in image.info or image.mode in {"LA", "La", "RGBA", "RGBa", "PA"}:
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
        if lowest < 255:  # type: ignore[operator]
            raise DataError(f"{name} is partly transparent; lay it on the background that you mean")
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
