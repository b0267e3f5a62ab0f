"""Labelled images that are checked once and can be trusted everywhere else."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robustres.data.check import check_labels, check_shape, checked_digest
from robustres.data.pixels import ChosenPixels, Pixels, chunks
from robustres.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and labels, which are checked on construction and need not be checked again.

    pixels: the images, N >= 1, finite and in [0, 1]: a float32 or float64 tensor (N, C, H, W), or an object that reads
        such images on demand, so that a set may be larger than memory.
    labels: (N,) int64 in 0 .. len(class_names) - 1.
    class_names: one name per class.
    source: where they come from, as a specification for `load_data`.
    sha256: digest of shape, pixels and labels, the same however they are stored. It is computed in the same pass that
        checks every pixel; if it is given, it must match.
    split: which split of the data this is, empty if unknown;
    split_seed: seed of the draw that divided the data, None if the source has its own splits.
    ordered_by_name: whether the labels merely follow the alphabetical order of the class names.
    Raises DataError for anything else.
    """

    pixels: Pixels
    labels: Tensor
    class_names: tuple[str, ...]
    source: str
    sha256: str = ""
    split: str = ""
    split_seed: int | None = None
    ordered_by_name: bool = False

    def __post_init__(self) -> None:
        check_shape(tuple(self.pixels.shape), self.source)
        check_labels(self.labels, self.pixels.shape[0], len(self.class_names), self.source)
        found = checked_digest(self.pixels, self.labels, self.source)
        if self.sha256 not in ("", found):
            raise DataError(
                f"{self.source}: the digest is {found}, expected {self.sha256}; the data has changed or was damaged: "
                "download it again"
            )
        object.__setattr__(self, "sha256", found)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.image_shape))
        return f"ImageSet({len(self)} images of {shape}, {self.classes} classes, {self.source})"

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    @cached_property
    def images(self) -> Tensor:
        """All images at once, (N, C, H, W); they stay in memory, so read large sets with `batch`."""
        return self.pixels if isinstance(self.pixels, Tensor) else self.batch(torch.arange(len(self)))

    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices` (M,) int64, as (M, C, H, W), in that order; nothing else is read."""
        return self.pixels[indices]

    def facts(self) -> dict[str, Any]:
        """Entries of a manifest about the images: where they come from, their digest, which split of the data they
        are.
        """
        return {"source": self.source, "sha256": self.sha256, "split": self.split, "split_seed": self.split_seed}

    def spaced(self, count: int) -> Tensor:
        """At most this many images, evenly spaced over the set, as returned by `batch`."""
        return self.batch(torch.linspace(0, len(self) - 1, min(count, len(self))).round().long())

    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest pixel."""
        bounds = [torch.aminmax(self.batch(index)) for index in chunks(self.pixels.shape)]
        return min(float(low) for low, _ in bounds), max(float(high) for _, high in bounds)

    def subset(self, indices: Tensor) -> "ImageSet":
        """The samples at `indices` (M,) int64, in that order; the source is kept and the digest is recomputed."""
        chosen = self.pixels[indices] if isinstance(self.pixels, Tensor) else ChosenPixels(self.pixels, indices)
        return replace(self, pixels=chosen, labels=self.labels[indices], sha256="")

    def and_also(self, other: "ImageSet") -> "ImageSet":
        """The samples of both sets, in memory; they must have the same classes and image shape."""
        if (self.class_names, self.image_shape) != (other.class_names, other.image_shape):
            raise DataError(f"{self.source} and {other.source} differ in their classes or in the shape of their images")
        return ImageSet(
            torch.cat([self.images, other.images]),
            torch.cat([self.labels, other.labels]),
            self.class_names,
            f"{self.source} and {other.source}",
            split="+".join((self.split, other.split)),
            split_seed=self.split_seed,
            ordered_by_name=self.ordered_by_name,
        )

    def first(self, limit: int) -> "ImageSet":
        """The first `limit` samples, or all if there are fewer."""
        if limit < 1:
            raise DataError(f"limit must be at least 1, got {limit}; leave it out to take every sample")
        return self if limit >= len(self) else self.subset(torch.arange(limit))
