"""A folder of images with one directory per class."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from robustres.data.image_set import ImageSet
from robustres.data.splits import Split, held_out, split_folder
from robustres.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})


def image_folder(folder: Path, split: Split = "test", *, limit: int | None = None) -> ImageSet:
    """Every image under FOLDER/CLASS/, the classes in alphabetical order; all must have the same size.

    Greyscale folders give one channel, others three. With `limit` only as many files are opened, taken evenly from
    the classes in turn.
    """
    part, carve = split_folder(folder, split)
    class_names = tuple(sorted(entry.name for entry in part.iterdir() if entry.is_dir()))
    if not class_names:
        raise DataError(f"{part} has no class folders; an image folder holds one directory of images per class")
    files = _files_in_turn(part, class_names)
    if carve:
        chosen = held_out(torch.tensor([label for _, label in files]), split)
        files = [files[index] for index in chosen.tolist()]
    files = files[:limit]
    images = [_read(file) for file, _ in files]
    _require_equal_shapes(images, files)
    if not images:
        raise DataError(f"{part} holds no images; known endings are {', '.join(sorted(SUFFIXES))}")
    labels = torch.tensor([label for _, label in files])
    return ImageSet(torch.stack(images).float() / 255, labels, class_names, f"folder:{folder} ({split})")


def _files_in_turn(part: Path, class_names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """All image files with their labels: the first of each class, then the second of each, and so on."""
    ranked = [
        (rank, label, file)
        for label, name in enumerate(class_names)
        for rank, file in enumerate(
            sorted(file for file in (part / name).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        )
    ]
    return [(file, label) for _, label, file in sorted(ranked)]


def _read(file: Path) -> Tensor:
    """Pixels of one file as uint8 (C, H, W)."""
    try:
        with Image.open(file) as image:
            pixels = np.array(image if image.mode == "L" else image.convert("RGB"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {file} ({error}); repair or remove it") from error
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


def _require_equal_shapes(images: list[Tensor], files: list[tuple[Path, int]]) -> None:
    for image, (file, _) in zip(images, files, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"{file} has shape {tuple(image.shape)} (channels, height, width) but {files[0][0]} has "
                f"{tuple(images[0].shape)}; bring all images to one size first"
            )
