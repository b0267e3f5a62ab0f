"""Files that are written completely or not at all, and text that no spreadsheet interprets as a formula."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from robustres.errors import StorageError

# Characters that a spreadsheet interprets as the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def json_text(content: Any) -> str:
    """JSON as robustres writes it: indented, without NaN or infinity, which the JSON standard lacks."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def csv_text(frame: pd.DataFrame) -> str:
    """CSV without the index; text that a spreadsheet would run as a formula, in cells and headers, is prefixed with '.

    >>> csv_text(pd.DataFrame({"name": ["=1+1", "-3"], "x": [-1.5, 2.0]}))
    "name,x\\n'=1+1,-1.5\\n-3,2.0\\n"
    """
    texts = [column for column in frame if not pd.api.types.is_numeric_dtype(frame[column])]
    harmless = frame.assign(**{str(column): frame[column].map(_harmless) for column in texts})
    return str(harmless.rename(columns=_harmless).to_csv(index=False))


def _harmless(value: Any) -> Any:
    """The value unchanged, unless it is a string that begins like a formula and is not a number."""
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def write_atomically(path: Path, content: bytes) -> None:
    """The file is written completely or not at all, and survives a power failure once this returns.

    Raises StorageError, an OSError, if it cannot be written; then nothing has changed.
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
            f"cannot write {path} ({error.strerror or error}); free some space or choose another folder, then run the "
            "same command again: what was written is kept"
        ) from error
    finally:
        # The cause that prevented writing may also prevent removal; the first error is the one to report.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable as well: a rename changes the folder, not the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
