"""One evaluation per run folder at a time, with a lock that the operating system releases with its process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from robustres.errors import InputError, StorageError

LOCK, OWNER = ".lock", ".lock-owner"


def require_free(folder: Path) -> None:
    """Raise InputError if another process holds the folder's lock, before anything is computed."""
    if (folder / LOCK).exists():
        with locked(folder):
            pass


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; raises InputError if another process holds it.

    The operating system releases the lock when the process that holds it ends, for whatever reason, so a run that died
    never blocks its continuation. The files that remain have no meaning.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{folder} is in use by process {_owner(folder)}; wait until it ends, or choose another --out"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot write into {folder} ({error.strerror}); choose another --out") from error
    try:
        (folder / OWNER).write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


def _owner(folder: Path) -> str:
    """The id of the process that holds the lock, if known."""
    try:
        return (folder / OWNER).read_text().strip() or "unknown"
    except OSError:
        return "unknown"
