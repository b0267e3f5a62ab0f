"""MNIST in torchvision's layout under a root folder; nothing is downloaded unless asked for."""

from pathlib import Path

from torchvision import datasets

from robustres.data.image_set import ImageSet
from robustres.data.splits import Split, held_out
from robustres.errors import DataError


def mnist(split: Split = "test", *, root: Path | None = None, download: bool = False) -> ImageSet:
    """The 10,000 test images, or nine (train) or one (validation) tenth of the 60,000 training images.

    root: the folder that holds MNIST/raw with the four idx files.
    download: whether torchvision may fetch them when they are missing.
    """
    if root is None:
        raise DataError("mnist needs the folder that holds MNIST/raw; name it with --data-root (root=)")
    try:
        stored = datasets.MNIST(str(root), train=split != "test", download=download)
    except (RuntimeError, OSError, ValueError) as error:
        raise DataError(
            f"cannot read MNIST under {root}: the idx files are expected in {root / 'MNIST' / 'raw'}; "
            "name another folder with --data-root, or ask for the download with --download"
        ) from error
    images, labels = stored.data, stored.targets.long()
    if split != "test":
        chosen = held_out(labels, split)
        images, labels = images[chosen], labels[chosen]
    return ImageSet(images.unsqueeze(1).float() / 255, labels, tuple("0123456789"), f"mnist ({split})")
