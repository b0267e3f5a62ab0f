"""Stores for the pixels of a data set: in memory, in an array on disk, or in encoded images, read on demand."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK_PIXELS = 2**22


class Pixels(Protocol):
    """Images that are read on demand; a float32 tensor (N, C, H, W) is an example, and so are the classes below."""

    @property
    def shape(self) -> Sequence[int]:
        """(N, C, H, W)."""
        ...

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """The images at `index` (M,) int64, as float32 (M, C, H, W), in that order."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayPixels:
    """An array (N, H, W, C), memory-mapped or not: integers 0 .. `largest` divided by `largest`, or floats
    unchanged.
    """

    array: NDArray[np.generic]
    largest: int = 255

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        samples, height, width, channels = self.array.shape
        return samples, channels, height, width

    def __getitem__(self, index: Tensor, /) -> Tensor:
        rows = np.ascontiguousarray(self.array[index.numpy()].transpose(0, 3, 1, 2))
        pixels = torch.from_numpy(rows.astype(np.float32, copy=False))
        return pixels / self.largest if np.issubdtype(rows.dtype, np.integer) else pixels


@dataclass(frozen=True, eq=False)
class ChosenPixels:
    """Some of the images of another store, in the order of `chosen` (N,) int64."""

    pixels: Pixels
    chosen: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return len(self.chosen), *self.pixels.shape[1:]

    def __getitem__(self, index: Tensor, /) -> Tensor:
        return self.pixels[self.chosen[index]]


@dataclass(frozen=True, eq=False)
class DecodedPixels:
    """Encoded images: `decode(i)` gives image i as float32 of `image_shape` (C, H, W), or raises DataError."""

    samples: int
    image_shape: tuple[int, int, int]
    decode: Callable[[int], Tensor]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return self.samples, *self.image_shape

    def __getitem__(self, index: Tensor, /) -> Tensor:
        pixels = torch.empty(len(index), *self.image_shape)
        for row, sample in enumerate(index.tolist()):
            pixels[row] = self.decode(sample)
        return pixels


def chunks(shape: Sequence[int]) -> Iterator[Tensor]:
    """Consecutive indices that cover 0 .. N, in chunks of images of about 16 MiB."""
    samples = shape[0]
    size = max(1, CHUNK_PIXELS // max(1, int(np.prod(shape[1:]))))
    return (torch.arange(start, min(start + size, samples)) for start in range(0, samples, size))
