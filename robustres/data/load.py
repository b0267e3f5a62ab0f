"""One entry for every source of data."""

from pathlib import Path
from typing import Any

from robustres.data.digits import digits
from robustres.data.image_folder import image_folder
from robustres.data.image_set import ImageSet
from robustres.data.loaders import images_at_hand
from robustres.data.numpy_files import numpy_archive, numpy_folder
from robustres.data.saved_dataset import saved_dataset
from robustres.data.splits import Split, require_split
from robustres.data.torchvision_sets import TORCHVISION_SETS, torchvision_set
from robustres.errors import DataError

READERS = {"npy": numpy_folder, "npz": numpy_archive, "hf-disk": saved_dataset}


def load_data(
    spec: Any,
    *,
    root: str | Path | None = None,
    split: Split = "test",
    limit: int | None = None,
    download: bool = False,
    classes: str | Path | None = None,
) -> ImageSet:
    """Checked images in [0, 1] and labels; sets stored on disk may be larger than memory.

    spec: `digits` (embedded); `mnist`, `fashion-mnist`, `kmnist`, `cifar10` or `cifar100` (torchvision's layout under
        `root`); `folder:DIR` (one directory per class), `npy:DIR` (images.npy and labels.npy), `npz:FILE` (the same
        in one archive) or `hf-disk:DIR` (a Hugging Face data set written by save_to_disk); or images (N, C, H, W) in
        [0, 1] (uint8 is divided by 255) with labels (N,) as tensors, arrays or lists; or a torch Dataset or DataLoader
        of images and labels, which is read into memory.
    root: the folder with torchvision's layout.
    split: "train", "validation" or "test"; a fixed tenth of the training split is held out for validation if the source
        has no validation split.
    limit: largest number of samples; only the first ones are read.
    download: whether a missing torchvision data set may be downloaded; nothing is downloaded silently.
    classes: for folder:DIR, a text file with the names of the folders in the order of the network's outputs, one per
        line; without it the labels are the folders in alphabetical order.
    Raises DataError for anything that cannot be used.

    >>> load_data("digits", limit=3).images.shape
    torch.Size([3, 1, 8, 8])
    """
    require_split(split)
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}; leave it out to take every sample")
    if classes is not None and not str(spec).startswith("folder:"):
        raise DataError(f"only folder:DIR takes a file of classes, got {spec!r}; npy:DIR has its classes.txt")
    if not isinstance(spec, str):
        return images_at_hand(spec, limit)
    kind, _, place = spec.partition(":")
    if kind == "folder" and place:
        return image_folder(Path(place), split, limit=limit, classes=None if classes is None else Path(classes))
    if kind in READERS and place:
        return READERS[kind](Path(place), split, limit=limit)
    if spec in TORCHVISION_SETS:
        where = None if root is None else Path(root)
        return torchvision_set(spec, split, root=where, download=download, limit=limit)
    if spec == "digits":
        return digits(split) if limit is None else digits(split).first(limit)
    known = ", ".join(["digits", *TORCHVISION_SETS, "folder:DIR", "npy:DIR", "npz:FILE"])
    raise DataError(f"data must be one of {known} and hf-disk:DIR, got {spec!r}")
