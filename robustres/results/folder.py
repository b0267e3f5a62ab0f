"""The folder of a run: its manifest and its tables, written part by part and read back."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustres.errors import InputError
from robustres.results.check import require_unique
from robustres.results.files import json_text, write_atomically
from robustres.results.manifest import checked_manifest
from robustres.results.parts import DIAGNOSED, TRAINING, WHOLE, Parts, sha256
from robustres.results.schema import ARCHIVE, KEPT, PROOFS, TABLES, TIMINGS, empty_table, without_rows
from robustres.results.seal import NAME as SEAL
from robustres.results.seal import require_seal, write_seal
from robustres.results.summary import summarise


@dataclass(frozen=True)
class RunFolder:
    """The location of one run's manifest and tables, and how they are read and written.

    Nothing in the folder is trusted: names never become paths, and everything that is read is checked for its structure
    and against its digest.
    """

    path: Path

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write run.json."""
        write_atomically(self.path / "run.json", json_text(manifest).encode())

    def manifest(self) -> dict[str, Any]:
        """Read run.json; raises InputError if the folder contains no run, or one that this version cannot read."""
        file = self.path / "run.json"
        if not file.is_file():
            raise InputError(f"{self.path} contains no run (no run.json); give a folder written by robustres")
        try:
            content = json.loads(file.read_text())
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror}); check the disk and the permissions") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is damaged ({error}); start this run over with --overwrite") from error
        return checked_manifest(content, file)

    def parts(self) -> Parts:
        """The parts of the tables that the manifest lists."""
        manifest = self.manifest() if (self.path / "run.json").is_file() else {}
        listed = manifest.get("parts")
        known = None if listed is None else frozenset([*listed, WHOLE, DIAGNOSED, TRAINING])
        return Parts(self.path / "parts", known, manifest.get("id"))

    def write_part(self, table: str, part: str, rows: pd.DataFrame | list[dict[str, Any]]) -> None:
        """Add one part of one table; parts are read back in the order of their names."""
        self.parts().write(part, {table: rows}, kept=True)

    def finish_part(self, part: str, tables: Mapping[str, pd.DataFrame | list[dict[str, Any]]]) -> None:
        """Write this part of several tables, and finally their digests, which mark the part as finished."""
        self.parts().write(part, dict(tables))

    def part(self, table: str, part: str) -> pd.DataFrame:
        """One part of a table; raises InputError if its file is not as it was written."""
        return self.parts().read(table, part)

    def write_timings(self, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store the time taken by each step of a part; rows as in TIMINGS."""
        text = json_text([{**row, "eps": row["eps"] if math.isfinite(row["eps"]) else None} for row in rows])
        write_atomically(self.path / "timings" / f"{part}.json", text.encode())

    def timings(self) -> pd.DataFrame:
        """Wall-clock seconds of every attack and certificate by part; divide by `samples` for seconds per sample."""
        rows: list[Any] = []
        for file in sorted((self.path / "timings").glob("*.json")):
            try:
                found = json.loads(file.read_text())
                if not all(set(row) == set(TIMINGS) for row in found):
                    raise ValueError(f"its entries must have {', '.join(TIMINGS)}")
            except (OSError, ValueError, TypeError, RecursionError) as error:
                raise InputError(f"{file} is damaged ({error}); remove it, no result depends on it") from error
            rows += found
        return pd.DataFrame(rows, columns=list(TIMINGS)).astype(TIMINGS) if rows else without_rows(TIMINGS)

    def remove_leftovers(self) -> None:
        """Remove files left behind by processes that were killed while writing; only for the sole user of the
        folder.
        """
        for folder in (self.path, self.path / "parts", self.path / "timings", self.path / PROOFS):
            for file in folder.glob(".*.partial"):
                file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the files that an evaluation writes, the manifest first; other files are kept."""
        for name in ("run.json", "summary.json", SEAL, ARCHIVE):
            (self.path / name).unlink(missing_ok=True)
        Parts(self.path / "parts").clear()
        Parts(self.path / "timings").clear()
        for file in (self.path / PROOFS).glob("*.npz"):
            file.unlink(missing_ok=True)

    def table(self, name: str) -> pd.DataFrame:
        """All parts of a table in one frame; raises InputError if a file is not as it was written, or exists twice."""
        frames = [frame for frame in self.parts().frames(name) if not frame.empty]
        whole = pd.concat(frames, ignore_index=True) if frames else empty_table(name)
        require_unique(name, whole, self.path)
        return whole

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table that reports read, by name; raises InputError if one refers to samples that the run does not
        have.
        """
        tables = {name: self.table(name) for name in TABLES if name not in KEPT}
        samples = tables["samples"]["index"]
        for name in ("attacks", "certificates", "examples"):
            strange = tables[name].loc[~tables[name]["index"].isin(samples), "index"]
            if len(strange):
                raise InputError(
                    f"{self.path}: table {name!r} has rows for sample {strange.iloc[0]}, which table 'samples' does "
                    "not have; evaluate again with --overwrite"
                )
        return tables

    def adversarial(self) -> Iterator[tuple[pd.DataFrame, NDArray[np.float32]]]:
        """Part by part: the rows of every stored adversarial example, and the images (N, C, H, W).

        Empty if the run stored none (`save_examples`).
        """
        for frame in self.parts().frames("adversarial"):
            if len(frame):
                yield frame.drop(columns="image"), np.stack([_pixels(row) for row in frame.to_dict(orient="records")])

    def write_proof(self, row: Mapping[str, Any], content: bytes) -> str:
        """Keep a local certificate, of the row (index, certificate, norm) of the table "proofs"; returns its digest."""
        write_atomically(self._proof(row), content)
        return sha256(content)

    def proof(self, row: Mapping[str, Any]) -> bytes:
        """The certificate of a row of the table "proofs"; InputError where its file is not what was written."""
        file = self._proof(row)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror})") from error
        if sha256(content) != row["sha256"]:
            raise InputError(f"{file} was changed: its sha256 is not the one recorded when it was written")
        return content

    def _proof(self, row: Mapping[str, Any]) -> Path:
        return self.path / PROOFS / f"{row['certificate']}-{row['norm']}-{row['index']:09d}.npz"

    def seal(self) -> str:
        """Write digest.json, from the manifest and all parts as they are now; returns the digest."""
        return write_seal(self.path, self.parts())

    def unseal(self) -> None:
        """Remove digest.json, before anything that it covers changes."""
        (self.path / SEAL).unlink(missing_ok=True)

    def digest(self) -> str | None:
        """The digest of a finished run, None for an unfinished one; raises InputError if a file has changed since."""
        return require_seal(self.path, self.parts())

    def write_summary(self) -> dict[str, Any]:
        """Write summary.json from the manifest and the tables, and return it."""
        summary = summarise(self.manifest(), self.tables())
        write_atomically(self.path / "summary.json", json_text(summary).encode())
        return summary


def _pixels(row: Mapping[Any, Any]) -> NDArray[np.float32]:
    """An image (C, H, W) in [0, 1]."""
    levels = row["pixels"] == "uint8"
    values = np.frombuffer(row["image"], dtype=np.uint8 if levels else np.float32).astype(np.float32)
    image: NDArray[np.float32] = values.reshape(row["channels"], row["height"], row["width"])
    return image / np.float32(255) if levels else image
