"""Files that appear complete or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from robustres.errors import StorageError


def json_text(content: Any) -> str:
    """JSON as robustres writes it: indented, without NaN or infinity, which its standard does not know."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_atomically(path: Path, content: bytes) -> None:
    """The file appears complete or not at all, and survives a power cut once this returns.

    Raises StorageError, an OSError, where it cannot be written; then nothing has changed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({error.strerror or error}); make room or choose another folder, then run the same "
            "command again: what was written is kept"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, too: a rename is a change of the folder, not of the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
