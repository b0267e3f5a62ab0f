"""Labelled images that have been checked once and can be trusted everywhere else."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustres.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and labels; building one checks them, so whoever holds one need not check again.

    images: (N, C, H, W) float32 in [0, 1], N >= 1, finite.
    labels: (N,) int64 in 0 .. len(class_names) - 1.
    class_names: one name per class.
    source: where they come from, in the words of `load_data`.
    sha256: digest of shape, pixels and labels; computed where left empty.
    Raises DataError, one sentence, for anything else.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    source: str
    sha256: str = ""

    def __post_init__(self) -> None:
        _check_images(self.images, self.source)
        _check_labels(self.labels, len(self.images), len(self.class_names), self.source)
        if not self.sha256:
            object.__setattr__(self, "sha256", _digest(self.images, self.labels))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, indices: Tensor) -> "ImageSet":
        """The samples at `indices` (M,) int64, in that order; the source is kept, the digest made anew."""
        return replace(self, images=self.images[indices], labels=self.labels[indices], sha256="")

    def first(self, limit: int) -> "ImageSet":
        """The first `limit` samples, or all where there are fewer."""
        if limit < 1:
            raise DataError(f"limit must be at least 1, got {limit}; leave it out to take every sample")
        if limit >= len(self):
            return self
        return replace(self, images=self.images[:limit], labels=self.labels[:limit], sha256="")


def _check_images(images: Tensor, source: str) -> None:
    if images.ndim != 4 or images.dtype != torch.float32:
        raise DataError(
            f"{source}: images must be float32 of shape (N, C, H, W), "
            f"got {str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
        )
    if images.numel() == 0:
        raise DataError(f"{source}: there are no images (shape {tuple(images.shape)}); at least one is needed")
    low, high = (bound.item() for bound in torch.aminmax(images))
    if not (low >= 0 and high <= 1):
        raise DataError(f"{source}: {_range_complaint(images, low, high)}")


def _range_complaint(images: Tensor, low: float, high: float) -> str:
    finite = torch.isfinite(images).flatten(1).all(1)
    if not finite.all():
        first = int((~finite).nonzero()[0, 0])
        return f"image {first} holds a NaN or an infinity ({int((~finite).sum())} such images); remove or repair them"
    found = f"images must lie in [0, 1], got values from {low:.4g} to {high:.4g}"
    if low >= 0 and high > 2:
        return f"{found}; they look like 8-bit values: store them as uint8, or divide by 255"
    return f"{found}; they look normalised already: give the raw pixels and let the model normalise (mean and std)"


def _check_labels(labels: Tensor, samples: int, classes: int, source: str) -> None:
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise DataError(
            f"{source}: labels must be int64 of shape (N,), "
            f"got {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}"
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


def _digest(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    digest.update(images.contiguous().numpy().data)
    digest.update(labels.contiguous().numpy().data)
    return digest.hexdigest()
