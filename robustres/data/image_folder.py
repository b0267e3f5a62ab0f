"""A folder of images with one directory per class."""

from pathlib import Path

import torch
from torch import Tensor

from robustres.data.check import named_classes
from robustres.data.decode import decoded, header
from robustres.data.image_set import ImageSet
from robustres.data.pixels import DecodedPixels
from robustres.data.splits import SPLIT_SEED, Split, held_out, split_folder
from robustres.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})


def image_folder(
    folder: Path, split: Split = "test", *, limit: int | None = None, classes: Path | None = None
) -> ImageSet:
    """Every image under FOLDER/CLASS/; all must have the same size.

    Greyscale folders give one channel, others three. Files are opened and decoded when their batch is read. With
    `limit`, only that many files are opened, taken from the classes in turn.
    classes: a text file with one folder name per line, in the order of the network's outputs; names without a folder
        are classes without images. Without it the labels are the folders in alphabetical order.
    """
    part, carve = split_folder(folder, split)
    folders = sorted(entry.name for entry in part.iterdir() if entry.is_dir())
    if not folders:
        raise DataError(f"{part} has no class folders; an image folder contains one directory of images per class")
    class_names = tuple(folders) if classes is None else named_classes(classes)
    if unknown := sorted(set(folders) - set(class_names)):
        raise DataError(f"{classes} does not name the folder {unknown[0]} of {part}; list every folder on a line")
    files = _files_in_turn(part, class_names)
    if not files:
        raise DataError(f"{part} contains no images; known file extensions are {', '.join(sorted(SUFFIXES))}")
    if carve:
        chosen = held_out(torch.tensor([label for _, label in files]), split)
        files = [files[index] for index in chosen.tolist()]
    files = files[:limit]
    shape = header(files[0][0], str(files[0][0]))

    def decode(index: int) -> Tensor:
        file, _ = files[index]
        return decoded(file, str(file), shape=shape, first=str(files[0][0]))

    return ImageSet(
        DecodedPixels(len(files), shape, decode),
        torch.tensor([label for _, label in files]),
        class_names,
        f"folder:{folder} ({split})",
        split=split,
        split_seed=SPLIT_SEED if carve else None,
        ordered_by_name=classes is None,
    )


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
