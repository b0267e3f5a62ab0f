"""The parts of a run's tables: the names of their files, and the records of what was written."""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robustres.errors import InputError
from robustres.results.check import checked_rows
from robustres.results.files import json_text, write_atomically
from robustres.results.schema import TABLES, typed_table

_PART = "[A-Za-z0-9]{1,40}"
_RECORD = re.compile(rf"({_PART})\.json")
_TABLE = re.compile(rf"({'|'.join(TABLES)})-({_PART})\.parquet")
# Parts that do not refer to a span of samples, which a run may have besides those listed in its manifest.
WHOLE, DIAGNOSED, TRAINING = "all", "diagnosed", "training"
_RUN = "run"
CURE = "evaluate again with the same command and --out: this part is computed again"


@dataclass(frozen=True)
class Parts:
    """The folder of the parts. Only files named in a part's record are ever read, and only if they are as they were
    written.

    path: the folder. listed: the names of the parts that may be here, None if the manifest does not list them.
    run: the id of the run, which is in every record, so that a part of another run is not mistaken for one of this run.
    """

    path: Path
    listed: frozenset[str] | None = None
    run: str | None = None

    def write(self, part: str, tables: dict[str, pd.DataFrame | list[dict[str, Any]]], *, kept: bool = False) -> None:
        """Write this part of several tables, and finally the record with their digests: then the part is finished.

        kept: whether the record keeps its entries for other tables.
        """
        if not re.fullmatch(_PART, part):
            raise InputError(f"the name of a part consists of at most 40 letters and digits, got {part!r}")
        digests = self.digests(part) if kept else {}
        for table, rows in tables.items():
            content: bytes = typed_table(table, rows).to_parquet(index=False)
            write_atomically(self.file(table, part), content)
            digests[self.file(table, part).name] = sha256(content)
        record = dict(sorted(digests.items()))
        write_atomically(
            self.record(part), json_text(record if self.run is None else {_RUN: self.run, **record}).encode()
        )

    def file(self, table: str, part: str) -> Path:
        """The file of this part of a table."""
        return self.path / f"{table}-{part}.parquet"

    def record(self, part: str) -> Path:
        """The file with the digests of a part's files."""
        return self.path / f"{part}.json"

    def digests(self, part: str) -> dict[str, str]:
        """The digest of every file of a finished part; empty if it is not finished, or belongs to another run."""
        content = _read_record(self.record(part))
        if content.pop(_RUN, self.run) != self.run:
            return {}
        named = [(_TABLE.fullmatch(name), digest) for name, digest in content.items()]
        fits = all(match is not None and match[2] == part and isinstance(digest, str) for match, digest in named)
        return content if fits else {}

    def damaged(self, part: str) -> list[Path]:
        """The files of a finished part that are missing or not as they were written."""
        files = {self.path / name: digest for name, digest in self.digests(part).items()}
        return [file for file, digest in files.items() if not file.is_file() or sha256(file.read_bytes()) != digest]

    def names(self) -> list[str]:
        """The finished parts in order; raises InputError for a file here that belongs to none of them."""
        return list(self._finished())

    def read(self, table: str, part: str) -> pd.DataFrame:
        """One part of a table, checked; raises InputError if it is not as it was written."""
        return self._read(table, part, self.digests(part).get(self.file(table, part).name))

    def frames(self, table: str) -> Iterator[pd.DataFrame]:
        """This table, part by part."""
        for part, digests in self._finished().items():
            if (name := self.file(table, part).name) in digests:
                yield self._read(table, part, digests[name])

    def clear(self) -> None:
        """Remove every file with the name of a part's file; others are kept."""
        for file in self._files():
            if _RECORD.fullmatch(file.name) or _TABLE.fullmatch(file.name):
                file.unlink(missing_ok=True)

    def _read(self, table: str, part: str, digest: str | None) -> pd.DataFrame:
        file = self.file(table, part)
        if digest is None:
            raise InputError(f"{file} is not recorded as finished; {CURE}")
        try:
            content = file.read_bytes()
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror}); {CURE}") from error
        if sha256(content) != digest:
            raise InputError(f"{file} is damaged: its sha256 is not the one recorded when it was written; {CURE}")
        try:
            rows = pd.read_parquet(io.BytesIO(content))
        except (ValueError, OSError) as error:
            raise InputError(f"{file} is damaged ({error}); {CURE}") from error
        return checked_rows(table, rows, file)

    def _finished(self) -> dict[str, dict[str, str]]:
        """The digests of every finished part, after checking for other files."""
        files = self._files()
        records = [(match[1], file) for file in files if (match := _RECORD.fullmatch(file.name))]
        for part, file in records:
            if self.listed is not None and part not in self.listed:
                raise InputError(f"{file} does not belong to this run: run.json does not list it; remove it")
            if _read_record(file).get(_RUN, self.run) != self.run:
                raise InputError(f"{file} is a part of another run; {CURE}")
        finished = {part: found for part, _ in records if (found := self.digests(part))}
        known = {name for digests in finished.values() for name in digests}
        begun = set() if self.listed is None else self.listed - finished.keys()
        for file in files:
            if file.suffix == ".parquet" and file.name not in known:
                match = _TABLE.fullmatch(file.name)
                if match is None or match[2] not in begun:  # otherwise the run was interrupted while it wrote this part
                    raise InputError(
                        f"{file} is not recorded by any part of this run (a copy made by a file service, or a "
                        "part of another run); remove it"
                    )
        return finished

    def _files(self) -> list[Path]:
        return sorted(file for file in self.path.glob("*") if file.is_file())


def _read_record(file: Path) -> dict[str, Any]:
    """The contents of a record; empty if none can be read, so that the part is computed again."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def sha256(content: bytes) -> str:
    """The digest used in records."""
    return hashlib.sha256(content).hexdigest()
