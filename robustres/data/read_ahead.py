"""Reads the next batch while the current one is processed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Key = TypeVar("Key")
Batch = TypeVar("Batch")


def read_ahead(read: Callable[[Key], Batch], keys: Iterable[Key], *, depth: int = 1) -> Iterator[tuple[Key, Batch]]:
    """Yield each key with the result of `read`, in order; up to `depth` batches are read ahead in a separate thread.

    Memory holds the current batch, the previous one until it is released, and `depth` more. An error of `read` is
    raised in place of its batch.

    >>> list(read_ahead(abs, [-1, 2]))
    [(-1, 1), (2, 2)]
    """
    waiting = iter(keys)
    pending: deque[tuple[Key, Future[Batch]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        try:
            pending.extend((key, thread.submit(read, key)) for key in islice(waiting, depth + 1))
            while pending:
                key, batch = pending.popleft()
                yield key, batch.result()
                pending.extend((key, thread.submit(read, key)) for key in islice(waiting, 1))
        finally:
            for _, batch in pending:
                batch.cancel()
