"""One pass over a data set: every pixel is checked and added to the digest, one chunk at a time."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustres.data.pixels import Pixels, chunks
from robustres.data.read_ahead import read_ahead
from robustres.errors import DataError

MOST_CLASSES = 2**20


def check_shape(shape: tuple[int, ...], source: str) -> None:
    """Raise DataError unless this is (N, C, H, W) with at least one pixel."""
    if len(shape) != 4:
        raise DataError(
            f"{source}: images must be float32 of shape (N, C, H, W), got shape {shape}; add the missing axes"
        )
    if 0 in shape:
        raise DataError(f"{source}: there are no images (shape {shape}); at least one is needed")


def checked_digest(pixels: Pixels, labels: Tensor, source: str) -> str:
    """sha256 of shape, pixels and labels, independent of how they are stored; DataError names the first unusable image.

    Only a few chunks of the images are in memory at a time.
    """
    if isinstance(pixels, Tensor):
        _check_type(pixels, pixels.shape, source)  # before torch older than 2.9 fails to index unsigned integers
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    for index, images in read_ahead(pixels.__getitem__, chunks(pixels.shape)):
        _check_chunk(pixels, images, int(index[0]), source)
        digest.update(images.contiguous().numpy().data)
    digest.update(labels.contiguous().numpy().data)
    return digest.hexdigest()


def check_labels(labels: Tensor, samples: int, classes: int, source: str) -> None:
    """Raise DataError unless labels are int64 of shape (samples,) in 0 .. classes - 1."""
    if labels.ndim != 1 or labels.dtype != torch.int64:
        column, rows = labels.ndim == 2 and labels.shape[1] == 1, labels.ndim == 2
        cure = "take labels[:, 0]" if column else "for one-hot rows take labels.argmax(1)" if rows else "convert them"
        raise DataError(
            f"{source}: labels must be int64 of shape (N,), "
            f"got {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}; {cure}"
        )
    if len(labels) != samples:
        raise DataError(f"{source}: {samples} images but {len(labels)} labels; every image needs exactly one label")
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        first = int(outside.nonzero()[0, 0])
        raise DataError(
            f"{source}: sample {first} has label {int(labels[first])}, outside the classes 0 .. {classes - 1}; "
            "correct the label or name the missing classes"
        )


def numbered_classes(labels: Tensor, source: str) -> tuple[str, ...]:
    """The names "0", "1", ... of the classes 0 .. max(labels); raises DataError for a label that is not a class
    number.
    """
    largest = max(int(labels.max()), 0) if labels.numel() else -1
    if largest >= MOST_CLASSES:
        raise DataError(
            f"{source}: sample {int(labels.argmax())} has label {largest}; labels number the classes from 0, and more "
            f"than {MOST_CLASSES} classes are not plausible (2^32 - 1 and the like mark samples to be ignored: leave "
            "these out)"
        )
    return tuple(map(str, range(largest + 1)))


def named_classes(file: Path) -> tuple[str, ...]:
    """The names of the classes in a text file, one per line, in order; raises DataError if it is not a text file."""
    try:
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the names of classes in {file} ({error}); write one per line, in UTF-8"
        ) from error
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{file} names the class {twice[0]!r} twice; every class needs a unique name")
    return names


def _check_type(images: Tensor, shape: Sequence[int], source: str) -> None:
    if images.dtype not in (torch.float32, torch.float64):
        cure = "convert them with .float()"
        if not (images.is_floating_point() or images.is_complex()) and int(images.to(torch.int64).max()) > 1:
            cure = "divide them by the value of white, such as 255 or 65535"
        raise DataError(
            f"{source}: images must be float32 or float64 of shape (N, C, H, W), "
            f"got {str(images.dtype).removeprefix('torch.')} of shape {tuple(shape)}; {cure}"
        )


def _check_chunk(pixels: Pixels, images: Tensor, start: int, source: str) -> None:
    _check_type(images, pixels.shape, source)
    low, high = (bound.item() for bound in torch.aminmax(images))
    if not (low >= 0 and high <= 1):
        raise DataError(f"{source}: {_complaint(pixels, images, start, low, high)}")


def _complaint(pixels: Pixels, images: Tensor, start: int, low: float, high: float) -> str:
    broken = _not_finite(images)
    if len(broken):
        count = sum(len(_not_finite(pixels[index])) for index in chunks(pixels.shape))
        return f"image {start + int(broken[0])} holds a NaN or an infinity ({count} such images); remove or repair them"
    found = f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g} among images {start} to "
    found += f"{start + len(images) - 1}"
    if low >= 0 and high > 2:
        return f"{found}; they look like 8-bit values: store them as uint8, or divide by 255"
    return f"{found}; they look already normalised: pass the raw pixels and let the model normalise them (mean and std)"


def _not_finite(images: Tensor) -> Tensor:
    return (~torch.isfinite(images).flatten(1).all(1)).nonzero()[:, 0]
