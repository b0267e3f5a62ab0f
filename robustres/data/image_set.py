"""Labelled images that have been checked once and can be trusted everywhere else."""

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
    """Images and labels; building one checks them, so whoever holds one need not check again.

    pixels: the images, N >= 1, finite and in [0, 1]: a float32 or float64 tensor (N, C, H, W), or anything that reads
        such images when asked for, so that a set may be larger than the memory.
    labels: (N,) int64 in 0 .. len(class_names) - 1.
    class_names: one name per class.
    source: where they come from, in the words of `load_data`.
    sha256: digest of shape, pixels and labels, the same however they are stored. It is computed in the one pass that
        also checks every pixel; where it is given, it must be this.
    split: which part of the data this is, empty where nothing is known of parts; split_seed: of the draw that divided
        the data, None where the source divides itself.
    ordered_by_name: whether the labels are nothing but the alphabetical order of the class names.
    Raises DataError, one sentence, for anything else.
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
                "fetch it again"
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
        """All images at once, (N, C, H, W); they stay in memory, so large sets are read by `batch`."""
        return self.pixels if isinstance(self.pixels, Tensor) else self.batch(torch.arange(len(self)))

    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices` (M,) int64, as (M, C, H, W), in that order; nothing else is read."""
        return self.pixels[indices]

    def facts(self) -> dict[str, Any]:
        """What a manifest says of the images: where they come from, their digest, which part of the data they are."""
        return {"source": self.source, "sha256": self.sha256, "split": self.split, "split_seed": self.split_seed}

    def spaced(self, count: int) -> Tensor:
        """At most so many images, evenly spaced over the set, as `batch` gives them."""
        return self.batch(torch.linspace(0, len(self) - 1, min(count, len(self))).round().long())

    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest pixel."""
        bounds = [torch.aminmax(self.batch(index)) for index in chunks(self.pixels.shape)]
        return min(float(low) for low, _ in bounds), max(float(high) for _, high in bounds)

    def subset(self, indices: Tensor) -> "ImageSet":
        """The samples at `indices` (M,) int64, in that order; the source is kept, the digest made anew."""
        chosen = self.pixels[indices] if isinstance(self.pixels, Tensor) else ChosenPixels(self.pixels, indices)
        return replace(self, pixels=chosen, labels=self.labels[indices], sha256="")

    def first(self, limit: int) -> "ImageSet":
        """The first `limit` samples, or all where there are fewer."""
        if limit < 1:
            raise DataError(f"limit must be at least 1, got {limit}; leave it out to take every sample")
        return self if limit >= len(self) else self.subset(torch.arange(limit))
