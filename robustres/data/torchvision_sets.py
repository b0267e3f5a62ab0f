"""Data sets in torchvision's layouts under a root folder; nothing is downloaded unless requested."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from robustres.data.image_set import ImageSet
from robustres.data.pixels import ArrayPixels, ChosenPixels
from robustres.data.splits import SPLIT_SEED, Split, held_out
from robustres.errors import DataError

# Name -> torchvision's class, and the folder under the root in which it searches.
TORCHVISION_SETS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "mnist": ("MNIST", "MNIST/raw"),
        "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
        "kmnist": ("KMNIST", "KMNIST/raw"),
        "cifar10": ("CIFAR10", "cifar-10-batches-py"),
        "cifar100": ("CIFAR100", "cifar-100-python"),
    }
)


def torchvision_set(
    name: str, split: Split = "test", *, root: Path | None = None, download: bool = False, limit: int | None = None
) -> ImageSet:
    """The test images, or nine (train) or one (validation) tenth of the training images; pixels stay uint8 in memory.

    root: the folder that contains the set in torchvision's layout. torchvision checks the files' digests, if it knows
        them (CIFAR), before it opens them.
    download: whether torchvision may download missing files.
    """
    from torchvision import datasets  # only here: with it comes the compiler of torch, which takes seconds to import

    kind, place = TORCHVISION_SETS[name]
    if root is None:
        raise DataError(f"{name} needs the folder that contains {place}; name it with --data-root (root=)")
    try:
        stored = getattr(datasets, kind)(str(root), train=split != "test", download=download)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise DataError(_missing(name, root / place, download, error)) from error
    images = np.asarray(stored.data)
    labels = torch.as_tensor(stored.targets).long()
    if len(images) != len(labels):
        raise DataError(
            f"{name} under {root} has {len(images)} images but {len(labels)} labels; its files are damaged: remove "
            f"{root / place} and download them again with --download"
        )
    chosen = torch.arange(len(labels)) if split == "test" else held_out(labels, split)
    return ImageSet(
        ChosenPixels(ArrayPixels(images if images.ndim == 4 else images[..., None]), chosen[:limit]),
        labels[chosen[:limit]],
        tuple(label.split(" - ")[0] for label in stored.classes),
        f"{name} ({split})",
        split=split,
        split_seed=None if split == "test" else SPLIT_SEED,
    )


def _missing(name: str, place: Path, download: bool, error: Exception) -> str:
    if download:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return (
            f"cannot download {name} ({reason}); this needs a connection: download it elsewhere and copy it to "
            f"{place}, or "
            "name another folder with --data-root"
        )
    return (
        f"cannot read {name}: its files are expected in {place}, complete and undamaged; name another folder with "
        "--data-root, or download them with --download"
    )
