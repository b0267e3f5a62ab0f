"""The next batch is read while this one is computed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Key = TypeVar("Key")
Batch = TypeVar("Batch")


def read_ahead(read: Callable[[Key], Batch], keys: Iterable[Key], *, depth: int = 1) -> Iterator[tuple[Key, Batch]]:
    """Each key with what `read` gives for it, in order; up to `depth` batches are read ahead in a thread of their own.

    In memory are the batch at hand, the one before until it is let go, and `depth` more. An error of `read` is raised
    where its batch would have come.

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
