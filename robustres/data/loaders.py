"""Images with labels in memory: tensors, arrays, lists, and torch data sets (Dataset, DataLoader)."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustres.at_hand import images_tensor, labels_tensor
from robustres.data.check import numbered_classes
from robustres.data.image_set import ImageSet
from robustres.errors import DataError


def images_at_hand(given: Any, limit: int | None) -> ImageSet:
    """Images and labels as tensors, arrays or lists, or from a Dataset or a DataLoader, read into memory.

    Raises DataError for anything else.
    """
    if isinstance(given, DataLoader):
        images, labels = _joined(_batches(given, limit), "the DataLoader")
    elif isinstance(given, Dataset):
        images, labels = _joined(_samples(given, limit), "the Dataset")
    elif isinstance(given, tuple | list) and len(given) == 2:
        images, labels = images_tensor(given[0]), labels_tensor(given[1])
    else:
        raise DataError(
            "data must be a specification, a pair (images, labels), a Dataset or "
            f"a DataLoader, got {type(given).__name__}"
        )
    if images.dtype in (torch.float16, torch.bfloat16):
        images = images.float()  # the same numbers
    images, labels = ((part[:limit] if part.ndim else part).cpu() for part in (images, labels))
    names = numbered_classes(labels, "images at hand") if labels.dtype == torch.int64 else ()
    return ImageSet(images, labels, names, "images at hand")


def _batches(loader: Iterable[Any], limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    seen = 0
    for batch in loader:
        images, labels = _pair(batch, "the DataLoader")
        yield images_tensor(images), labels_tensor(labels)
        seen += len(labels)
        if limit is not None and seen >= limit:
            return


def _samples(dataset: Any, limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    samples = (dataset[index] for index in range(len(dataset))) if hasattr(dataset, "__len__") else iter(dataset)
    for sample in islice(samples, limit):
        image, label = _pair(sample, "the Dataset")
        yield images_tensor(_array(image))[None], labels_tensor([int(label)])


def _pair(value: Any, source: str) -> tuple[Any, Any]:
    if isinstance(value, dict):
        found = [value[name] for name in ("image", "label") if name in value]
        value = found or [value.get("pixel_values"), value.get("labels")]
    if not isinstance(value, tuple | list) or len(value) < 2 or value[0] is None or value[1] is None:
        raise DataError(f"{source} must give pairs (image, label), got {type(value).__name__}; map it to such pairs")
    return value[0], value[1]


def _array(image: Any) -> Any:
    """A PIL image as an array (C, H, W); anything else unchanged."""
    if not hasattr(image, "getbands"):
        return image
    if image.mode not in {"L", "RGB"}:
        raise DataError(f"an image of the Dataset is in {image.mode}; convert it to L or RGB as intended")
    import numpy as np

    pixels = np.array(image)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


def _joined(parts: Iterator[tuple[Tensor, Tensor]], source: str) -> tuple[Tensor, Tensor]:
    pairs = list(parts)
    if not pairs:
        raise DataError(f"{source} gives no images; at least one is needed")
    shapes = {tuple(images.shape[1:]) for images, _ in pairs}
    if len(shapes) > 1:
        raise DataError(
            f"{source} gives images of several shapes, {' and '.join(map(str, sorted(shapes)[:2]))}; resize them"
        )
    images, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
    return images, labels
