"""Bounds stored on disk: in the run's folder and in the user's cache."""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustres.errors import StorageError
from robustres.results import write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoundStore:
    """Texts by key as files in each of several folders, with a digest in the first line.

    A text is read from the first folder that has it undamaged; damaged files count as missing. A folder that cannot be
    written is skipped: a bound that is not stored is merely computed again.
    """

    folders: Sequence[Path]

    def load(self, key: str) -> str | None:
        """The text stored under this key, None if no folder has it undamaged."""
        for folder in self.folders:
            try:
                digest, _, text = (folder / f"{key}.json").read_text().partition("\n")
            except (OSError, UnicodeDecodeError):
                continue
            if hashlib.sha256((key + text).encode()).hexdigest() == digest:
                return text
            log.warning("%s is damaged; the bounds are computed again", folder / f"{key}.json")
        return None

    def save(self, key: str, text: str) -> None:
        """Store the text in every folder."""
        content = hashlib.sha256((key + text).encode()).hexdigest() + "\n" + text
        for folder in self.folders:
            try:
                write_atomically(folder / f"{key}.json", content.encode())
            except StorageError as error:
                log.warning("the bounds are not stored: %s", error)


def user_cache() -> Path:
    """The folder in which bounds are kept across runs: under XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "robustres" / "bounds"
