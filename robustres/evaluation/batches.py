"""Work done batch by batch, in smaller batches if the accelerator's memory does not suffice."""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def in_batches(work: Callable[[slice], T], total: int, *, batch_size: int) -> list[T]:
    """The results of `work` on consecutive slices that cover 0 .. total.

    A batch for which the accelerator runs out of memory is halved and tried again, and the smaller size is kept.
    Raises torch.OutOfMemoryError if not even one sample fits.
    """
    results: list[T] = []
    start, size = 0, batch_size
    while start < total:
        stop = min(start + size, total)
        try:
            results.append(work(slice(start, stop)))
        except torch.OutOfMemoryError:
            if stop - start == 1:
                raise
            size = (stop - start) // 2
            torch.cuda.empty_cache()
            continue
        start = stop
    return results
