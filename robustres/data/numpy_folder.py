"""Images and labels in NumPy files: images.npy and labels.npy side by side in a folder."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from robustres.data.image_set import ImageSet
from robustres.data.splits import Split, held_out, split_folder
from robustres.errors import DataError


def numpy_folder(folder: Path, split: Split = "test", *, limit: int | None = None) -> ImageSet:
    """images.npy, (N, H, W, C) as uint8 or as floats in [0, 1], and labels.npy, (N,) integers.

    Class names come from classes.txt, one per line, where that file is there; else the classes are 0 .. max(label).
    With `limit` only the first samples are read from the disk.
    """
    part, carve = split_folder(folder, split)
    stored, labels = _load(part / "images.npy"), _load(part / "labels.npy")
    source = f"npy:{folder} ({split})"
    if stored.ndim != 4:
        raise DataError(f"{source}: images.npy must have shape (N, H, W, C), got {stored.shape}")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{source}: labels.npy must hold integers of shape (N,), got {labels.dtype} {labels.shape}")
    if len(stored) != len(labels):
        raise DataError(f"{source}: {len(stored)} images but {len(labels)} labels; every image needs exactly one label")
    if not len(stored):
        raise DataError(f"{source}: there are no images (shape {stored.shape}); at least one is needed")
    classes = _class_names(part, labels)
    if carve:
        chosen = held_out(torch.from_numpy(np.asarray(labels, dtype=np.int64)), split).numpy()
        stored, labels = stored[chosen[:limit]], labels[chosen[:limit]]
    pixels = _unit_range(np.array(stored[:limit]), source)
    targets = torch.from_numpy(np.array(labels[:limit], dtype=np.int64))
    return ImageSet(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), targets, classes, source)


def _load(file: Path) -> NDArray[np.generic]:
    if not file.is_file():
        raise DataError(f"there is no file {file}; npy:DIR needs images.npy and labels.npy in DIR")
    try:
        stored: NDArray[np.generic] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"cannot read {file} as a NumPy array ({error}); write it with numpy.save") from error
    return stored


def _unit_range(pixels: NDArray[np.generic], source: str) -> NDArray[np.float32]:
    """uint8 pixels divided by 255; floating-point pixels as they are."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise DataError(f"{source}: images.npy must hold uint8, or floats in [0, 1], got {pixels.dtype}")
    return pixels.astype(np.float32)


def _class_names(part: Path, labels: NDArray[np.generic]) -> tuple[str, ...]:
    names = part / "classes.txt"
    if names.is_file():
        return tuple(names.read_text().splitlines())
    return tuple(str(label) for label in range(max(int(np.max(labels)), 0) + 1))
