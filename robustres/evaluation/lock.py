"""One evaluation per run folder at a time, by a lock that dies with its process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustres.errors import InputError, StorageError


def require_free(folder: Path) -> None:
    """InputError where another process holds the folder's lock now, so that nobody computes for long to learn it."""
    if (folder / ".lock").exists():
        with locked(folder):
            pass


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; InputError where another process holds it.

    The operating system drops the lock with the process that holds it, however that ends, so a dead run never
    blocks its own resumption. The lock file itself stays and means nothing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise StorageError(f"cannot write into {folder} ({error.strerror}); choose another --out") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise InputError(
                f"{folder} is in use by process {owner}; wait until it ends, or choose another --out"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
