"""One entry for every source of data."""

from pathlib import Path

from robustres.data.digits import digits
from robustres.data.image_folder import image_folder
from robustres.data.image_set import ImageSet
from robustres.data.mnist import mnist
from robustres.data.numpy_folder import numpy_folder
from robustres.data.splits import Split, require_split
from robustres.errors import DataError


def load_data(
    spec: str,
    *,
    root: str | Path | None = None,
    split: Split = "test",
    limit: int | None = None,
    download: bool = False,
) -> ImageSet:
    """Checked images in [0, 1] and labels.

    spec: `digits` (embedded), `mnist` (torchvision's layout under `root`), `folder:DIR` (one directory per class) or
        `npy:DIR` (images.npy and labels.npy).
    root: where `mnist` lies.
    split: "train", "validation" or "test"; a fixed tenth of the training part is held out for validation where the
        source has no validation part of its own.
    limit: at most so many samples, the first ones.
    download: whether a missing `mnist` may be fetched; nothing is fetched silently.
    Raises DataError, one sentence, for anything that cannot be used.

    >>> load_data("digits", limit=3).images.shape
    torch.Size([3, 1, 8, 8])
    """
    require_split(split)
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}; leave it out to take every sample")
    kind, _, place = spec.partition(":")
    if kind in {"folder", "npy"} and place:
        read = image_folder if kind == "folder" else numpy_folder
        return read(Path(place), split, limit=limit)
    if spec == "digits":
        loaded = digits(split)
    elif spec == "mnist":
        loaded = mnist(split, root=None if root is None else Path(root), download=download)
    else:
        raise DataError(f"data must be digits, mnist, folder:DIR or npy:DIR, got {spec!r}")
    return loaded if limit is None else loaded.first(limit)
