"""The folder of a run: its manifest and its tables, written part by part and read back."""

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from robustres.errors import InputError
from robustres.results.files import json_text, write_atomically
from robustres.results.schema import TABLES, TIMINGS, empty_table, typed_table, without_rows
from robustres.results.summary import summarise


@dataclass(frozen=True)
class RunFolder:
    """Where one run's manifest and tables lie, and how they are read and written."""

    path: Path

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write run.json."""
        write_atomically(self.path / "run.json", json_text(manifest).encode())

    def manifest(self) -> dict[str, Any]:
        """Read run.json; InputError where the folder holds no run."""
        file = self.path / "run.json"
        if not file.is_file():
            raise InputError(f"{self.path} holds no run (no run.json); name a folder that robustres wrote")
        try:
            return dict(json.loads(file.read_text()))
        except ValueError as error:
            raise InputError(f"{file} is damaged ({error}); begin this run again with --overwrite") from error

    def write_part(self, table: str, part: str, rows: pd.DataFrame | list[dict[str, Any]]) -> str:
        """Write one part of a table and return its sha256; parts are read back in the order of their names."""
        content: bytes = typed_table(table, rows).to_parquet(index=False)
        write_atomically(self._file(table, part), content)
        return _sha256(content)

    def has_part(self, table: str, part: str) -> bool:
        """Whether that part was written completely."""
        return self._file(table, part).is_file()

    def part(self, table: str, part: str) -> pd.DataFrame:
        """One part of a table; InputError where its file is not what was written."""
        recorded = self._digests(self.path / "parts" / f"{part}.json")
        file = self._file(table, part)
        return _read_part(file, recorded.get(file.name))

    def finish_part(self, part: str, tables: Mapping[str, pd.DataFrame]) -> None:
        """Write this part of several tables, and last their digests, which say that the part is finished."""
        digests = {f"{table}-{part}.parquet": self.write_part(table, part, rows) for table, rows in tables.items()}
        write_atomically(self.path / "parts" / f"{part}.json", json_text(digests).encode())

    def write_timings(self, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep how long each step of a part took; rows as in TIMINGS."""
        text = json_text([{**row, "eps": row["eps"] if math.isfinite(row["eps"]) else None} for row in rows])
        write_atomically(self.path / "timings" / f"{part}.json", text.encode())

    def timings(self) -> pd.DataFrame:
        """Wall seconds of every attack and certificate by part; divided by `samples` they are seconds per sample."""
        files = sorted((self.path / "timings").glob("*.json"))
        rows = [row for file in files for row in json.loads(file.read_text())]
        return pd.DataFrame(rows, columns=list(TIMINGS)).astype(TIMINGS) if rows else without_rows(TIMINGS)

    def is_finished(self, part: str) -> bool:
        """Whether `finish_part` came to its end for that part."""
        return bool(self._digests(self.path / "parts" / f"{part}.json"))

    def damaged_files(self, part: str) -> list[Path]:
        """The files of a finished part that are missing or not what was written."""
        digests = self._digests(self.path / "parts" / f"{part}.json")
        files = {self.path / "parts" / name: digest for name, digest in digests.items()}
        return [file for file, digest in files.items() if not file.is_file() or _sha256(file.read_bytes()) != digest]

    def remove_leftovers(self) -> None:
        """Remove what processes that were killed while writing left behind; for whoever holds the folder alone."""
        for folder in (self.path, self.path / "parts", self.path / "timings"):
            for file in folder.glob(".*.partial"):
                file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the manifest, the summary and every part, the manifest first; other files stay."""
        parts = self.path / "parts"
        for file in (
            self.path / "run.json",
            self.path / "summary.json",
            *parts.glob("*.json"),
            *parts.glob("*.parquet"),
            *(self.path / "timings").glob("*.json"),
        ):
            file.unlink(missing_ok=True)

    def table(self, name: str) -> pd.DataFrame:
        """All parts of a table in one frame; InputError where a file is not what was written."""
        parts = self.path / "parts"
        recorded = {key: value for record in parts.glob("*.json") for key, value in self._digests(record).items()}
        frames = [_read_part(file, recorded.get(file.name)) for file in sorted(parts.glob(f"{name}-*.parquet"))]
        frames = [frame for frame in frames if not frame.empty]
        return pd.concat(frames, ignore_index=True) if frames else empty_table(name)

    def _file(self, table: str, part: str) -> Path:
        return self.path / "parts" / f"{table}-{part}.parquet"

    @staticmethod
    def _digests(record: Path) -> dict[str, str]:
        """What a part's record says; nothing where there is no readable record, so that the part is made again."""
        try:
            return dict(json.loads(record.read_text()))
        except (OSError, ValueError):
            return {}

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table of the run by name."""
        return {name: self.table(name) for name in TABLES}

    def write_summary(self) -> dict[str, Any]:
        """Make summary.json from the manifest and the tables, and return it."""
        summary = summarise(self.manifest(), self.tables())
        write_atomically(self.path / "summary.json", json_text(summary).encode())
        return summary


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_part(file: Path, digest: str | None) -> pd.DataFrame:
    content = file.read_bytes()
    cure = "evaluate again with the same command and --out: this part is computed anew"
    if digest is not None and _sha256(content) != digest:
        raise InputError(f"{file} is damaged: its sha256 is not the one recorded when it was written; {cure}")
    try:
        return pd.read_parquet(io.BytesIO(content))
    except (ValueError, OSError) as error:
        raise InputError(f"{file} is damaged ({error}); {cure}") from error
