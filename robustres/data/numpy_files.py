"""Images and labels in NumPy files: a folder with images.npy and labels.npy, or one npz archive."""

import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from robustres.data.check import named_classes, numbered_classes
from robustres.data.image_set import ImageSet
from robustres.data.pixels import ArrayPixels, ChosenPixels, Pixels
from robustres.data.splits import SPLIT_SEED, Split, held_out, split_folder
from robustres.errors import DataError

Array = NDArray[np.generic]

# Limit on the bytes of a compressed array, which has to be unpacked into memory.
LARGEST_UNPACKED = 2**33


def numpy_folder(folder: Path, split: Split = "test", *, limit: int | None = None) -> ImageSet:
    """images.npy, (N, H, W, C) as uint8 or as floats in [0, 1], and labels.npy, (N,) integers.

    Class names come from classes.txt, one per line, if that file exists; otherwise the classes are 0 .. max(label). The
    images stay on disk and are read batch by batch; with `limit` only the first ones are read.
    """
    part, carve = split_folder(folder, split)
    names = part / "classes.txt"
    classes = named_classes(names) if names.is_file() else ()
    arrays = _load(part / "images.npy"), _load(part / "labels.npy")
    return _image_set(*arrays, f"npy:{folder} ({split})", classes=classes, split=split, carve=carve, limit=limit)


def numpy_archive(file: Path, split: Split = "test", *, limit: int | None = None) -> ImageSet:
    """An npz archive with `images` and `labels` (one test split), or `train_images`, `train_labels`, `test_images`, ...

    Shapes and types as in `numpy_folder`; `classes` may name the classes. An archive written by numpy.savez is read
    batch by batch from disk; one written by numpy.savez_compressed is unpacked into memory, where uint8 stays uint8.
    """
    members = _members(file)
    prefix, carve = _archive_part(members, split)
    for name in (f"{prefix}images", f"{prefix}labels"):
        if name not in members:
            raise DataError(
                f"{file} has no array {name}, which the {split} split needs, only {', '.join(sorted(members))}; write "
                "it "
                "with numpy.savez(FILE, images=..., labels=...)"
            )
    classes = tuple(map(str, _member(file, "classes"))) if "classes" in members else ()
    arrays = _member(file, f"{prefix}images"), _member(file, f"{prefix}labels")
    return _image_set(*arrays, f"npz:{file} ({split})", classes=classes, split=split, carve=carve, limit=limit)


def _archive_part(members: set[str], split: Split) -> tuple[str, bool]:
    """The prefix of the split's array names, and whether a validation tenth must be held out of them."""
    if split == "test" and "images" in members:
        return "", False
    own = "validation_images" in members
    return ("train_" if split == "validation" and not own else f"{split}_"), split != "test" and not own


def _image_set(
    images: Array, labels: Array, source: str, *, classes: tuple[str, ...], split: Split, carve: bool, limit: int | None
) -> ImageSet:
    if images.ndim != 4:
        raise DataError(
            f"{source}: images must have shape (N, H, W, C), got {images.shape}; greyscale images need an axis of "
            "length 1 at the end: images[..., None]"
        )
    if images.shape[1] <= 4 < min(images.shape[2:]):
        raise DataError(
            f"{source}: images must have shape (N, H, W, C), got {images.shape}, whose second axis looks like "
            "the channel axis; move it with images.transpose(0, 2, 3, 1)"
        )
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{source}: images must be uint8, or floats in [0, 1], got {images.dtype}; convert them")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{source}: labels must be integers of shape (N,), got {labels.dtype} {labels.shape}; convert them"
        )
    if len(images) != len(labels):
        raise DataError(f"{source}: {len(images)} images but {len(labels)} labels; every image needs exactly one label")
    if not len(images):
        raise DataError(f"{source}: there are no images (shape {images.shape}); at least one is needed")
    targets = torch.from_numpy(np.array(labels, dtype=np.int64))
    names = classes or numbered_classes(targets, source)
    chosen = held_out(targets, split) if carve else torch.arange(len(targets))
    pixels: Pixels = ArrayPixels(images)
    if carve or limit is not None:
        pixels = ChosenPixels(pixels, chosen[:limit])
    seed = SPLIT_SEED if carve else None
    return ImageSet(pixels, targets[chosen[:limit]], names, source, split=split, split_seed=seed)


def _load(file: Path) -> Array:
    if not file.is_file():
        raise DataError(f"there is no file {file}; npy:DIR needs images.npy and labels.npy in DIR")
    try:
        stored: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header may contain anything
        raise DataError(f"cannot read {file} as a NumPy array ({error}); write it with numpy.save") from error
    return stored


def _members(file: Path) -> set[str]:
    """The names of the arrays in an archive."""
    if not file.is_file():
        raise DataError(f"there is no file {file}; npz:FILE needs an archive written by numpy.savez")
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except Exception as error:
        raise _unreadable(file, error) from error


def _member(file: Path, name: str) -> Array:
    """One array of an archive: memory-mapped if it is uncompressed, otherwise unpacked."""
    try:
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo(f"{name}.npy")
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, fortran, dtype = read[version](member)
                within = member.tell()
        if info.compress_type == zipfile.ZIP_STORED and not dtype.hasobject:
            start, order = _content_start(file, info) + within, "F" if fortran else "C"
            mapped: Array = np.memmap(file, dtype, "r", start, shape, order)  # type: ignore[call-overload]
            return mapped
        # Both numbers come from the file itself; NumPy would allocate the memory before reading anything.
        size = max(info.file_size, math.prod(shape) * dtype.itemsize)
        if size > LARGEST_UNPACKED:
            raise ValueError(f"{name} is compressed and would unpack to {size} bytes in memory")
        with np.load(file, allow_pickle=False) as arrays:
            unpacked: Array = arrays[name]
            return unpacked
    except Exception as error:  # a header may contain anything
        raise _unreadable(file, error) from error


def _content_start(file: Path, info: zipfile.ZipInfo) -> int:
    """The offset of a member's bytes: after its local header, which contains its two variable lengths."""
    with file.open("rb") as stream:
        stream.seek(info.header_offset)
        fixed = stream.read(30)
    return info.header_offset + 30 + int.from_bytes(fixed[26:28], "little") + int.from_bytes(fixed[28:30], "little")


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(f"cannot read {file} as a NumPy archive ({error}); write it with numpy.savez")
