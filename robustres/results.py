"""The schema of a run's tables, the folder that holds them, and the summary that is made from them.

A run folder holds
    run.json            the manifest: command, versions, hardware, seeds, hashes, every setting
    parts/TABLE-*.parquet   the tables below, appended part by part, each part written atomically
    parts/*.json        for each finished part of the samples, the sha256 of its files
    summary.json        made from the two: the contract for scripts (docs/summary.schema.json)
Nothing here knows models, attacks or certificates: a report can be made again years later.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from robustres.errors import InputError, StorageError

SCHEMA_VERSION = 1

# A certificate whose name starts so is about the classifier that votes under noise, not about the network.
SMOOTHED = "smoothed"

# Every example is measured in these norms, whatever the norm of its attack.
MEASURED_NORMS = ("l2", "linf")

# Column -> pandas dtype. Radii and distances are in pixel units, in the norm of their row.
TABLES: dict[str, dict[str, str]] = {
    # One row per sample. margin: logit of the label minus the largest other logit. finite: no NaN or infinity met.
    "samples": {
        "index": "int64",
        "label": "int64",
        "prediction": "int64",
        "correct": "bool",
        "margin": "float64",
        "finite": "bool",
    },
    # One row per sample, attack, norm and eps. distance: of the example found, infinite if none; 0 if misclassified
    # from the start. eps is NaN for a minimum-norm attack. l2, linf: the same example measured in those norms.
    "attacks": {
        "index": "int64",
        "attack": "str",
        "norm": "str",
        "eps": "float64",
        "fooled": "bool",
        "distance": "float64",
        "l2": "float64",
        "linf": "float64",
        "adversarial_prediction": "int64",
        "steps": "int64",
        "gradient_evaluations": "int64",
    },
    # One row per sample, certificate and norm. radius: 0 where nothing is certified. guarantee: "deterministic" or
    # "probability 1 - DELTA". source: which bound gave the radius.
    "certificates": {
        "index": "int64",
        "certificate": "str",
        "norm": "str",
        "radius": "float64",
        "prediction": "int64",
        "source": "str",
        "guarantee": "str",
    },
    # One row per block of the network, in order. textbook, joint: bounds (NaN where not computed); upper: the
    # smallest valid bound, method says which; lower: an estimate from below.
    "blocks": {
        "name": "str",
        "kind": "str",
        "shortcut": "float64",
        "branch": "float64",
        "textbook": "float64",
        "joint": "float64",
        "upper": "float64",
        "lower": "float64",
        "method": "str",
        "guarantee": "str",
    },
    # One row per attack, norm, eps and check for gradient masking.
    "diagnosis": {
        "attack": "str",
        "norm": "str",
        "eps": "float64",
        "check": "str",
        "value": "float64",
        "suspicious": "bool",
        "verdict": "str",
    },
    # One row per epoch of training, where the model was trained here.
    "training": {"epoch": "int64", "loss": "float64", "clean": "float64", "certified": "float64"},
    # A bounded number of samples for the gallery; pixels as float32 bytes in (C, H, W) order.
    "examples": {
        "index": "int64",
        "attack": "str",
        "norm": "str",
        "eps": "float64",
        "channels": "int64",
        "height": "int64",
        "width": "int64",
        "clean": "object",
        "adversarial": "object",
    },
}


def empty_table(name: str) -> pd.DataFrame:
    """The table without rows, its columns and types as in TABLES."""
    return pd.DataFrame({column: pd.Series(dtype=kind) for column, kind in TABLES[name].items()})


def typed_table(name: str, rows: pd.DataFrame | list[dict[str, Any]]) -> pd.DataFrame:
    """Rows with exactly the columns and types of the table; InputError names a column that is missing or unknown."""
    frame = pd.DataFrame(rows)
    if frame.empty:
        return empty_table(name)
    columns = TABLES[name]
    if set(frame.columns) != set(columns):
        raise InputError(
            f"table {name!r} has columns {sorted(columns)}, got {sorted(frame.columns)}; rename or add the difference"
        )
    changed = {column: kind for column, kind in columns.items() if frame[column].dtype != kind}
    return frame[list(columns)].astype(changed)


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

    def finish_part(self, part: str, tables: Mapping[str, pd.DataFrame]) -> None:
        """Write this part of several tables, and last their digests, which say that the part is finished."""
        digests = {f"{table}-{part}.parquet": self.write_part(table, part, rows) for table, rows in tables.items()}
        write_atomically(self.path / "parts" / f"{part}.json", json_text(digests).encode())

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
        for folder in (self.path, self.path / "parts"):
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


def summarise(manifest: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """The contract for scripts, from a run's manifest and tables. Accuracies are shares of all samples.

    `manifest` must hold "model", "data", "lipschitz" (norm, upper, lower; None where refused), "eps" (norm -> list of
    eps at which certificates are counted) and "refused" (list of path and operation).
    """
    samples = tables["samples"].set_index("index")
    correct = samples["correct"]
    total = len(samples)
    lipschitz = manifest["lipschitz"]
    return {
        "schema_version": SCHEMA_VERSION,
        "model": dict(manifest["model"]),
        "data": {**manifest["data"], "samples": total},
        "clean": {"correct": int(correct.sum()), "accuracy": _share(int(correct.sum()), total)},
        "attacks": _attack_rows(tables["attacks"], correct, manifest["eps"]),
        "certificates": _certificate_rows(tables["certificates"], samples["label"], manifest["eps"]),
        "lipschitz": None if lipschitz is None else {**lipschitz, "blocks": block_records(tables["blocks"])},
        "sandwich": {"violations": len(sandwich_violations(tables["attacks"], tables["certificates"]))},
        "refused": list(manifest["refused"]),
    }


def robust_mask(attacks: pd.DataFrame, correct: pd.Series, eps: float) -> pd.Series:
    """Per sample: correct, and no example of these rows lies within eps. Rows of one norm; index by sample."""
    broken = attacks.loc[attacks["fooled"] & (attacks["distance"] <= eps), "index"]
    return correct & ~correct.index.isin(broken.unique())


def certified_mask(certificates: pd.DataFrame, labels: pd.Series, eps: float) -> pd.Series:
    """Per sample: the label is the answer that is certified at eps (radius >= eps, radii being rounded down already).

    Rows of one certificate and norm; labels by sample index. Where a certificate is of the network, its prediction is
    the network's wherever its radius is positive, so that such a sample is correct as well.
    """
    rows = certificates.set_index("index").reindex(labels.index)
    return (rows["radius"] >= eps) & (rows["prediction"] == labels)


def of_network(certificates: pd.DataFrame) -> pd.DataFrame:
    """The radii of the network itself, which alone may be held against attacks on the network."""
    return certificates[~certificates["certificate"].astype(str).str.startswith(SMOOTHED)]


def sandwich_violations(attacks: pd.DataFrame, certificates: pd.DataFrame) -> pd.DataFrame:
    """Every pair of a certificate and an example of the same sample that lies inside the certified radius.

    An example counts when it changes the certified prediction; it is measured in the certificate's norm. Certificates
    of a smoothed classifier are left out: the examples fool the network, which is another function.
    """
    certified, fooled = of_network(certificates), attacks[attacks["fooled"]]
    near = _within_reach(fooled, certified)
    return _violations(fooled[near], certified) if near.any() else _no_violations().copy()


def _violations(attacks: pd.DataFrame, certificates: pd.DataFrame) -> pd.DataFrame:
    pairs = certificates.merge(attacks, on="index", suffixes=("", "_attack"))
    measured = pairs["distance"].where(pairs["norm"] == pairs["norm_attack"])
    for norm in MEASURED_NORMS:
        measured = measured.where(pairs["norm"] != norm, pairs[norm])
    changed = pairs["adversarial_prediction"] != pairs["prediction"]
    return pairs.assign(measured=measured)[changed & (measured < pairs["radius"])]


@cache
def _no_violations() -> pd.DataFrame:
    return _violations(empty_table("attacks"), empty_table("certificates"))


def _within_reach(attacks: pd.DataFrame, certificates: pd.DataFrame) -> NDArray[np.bool_]:
    """Which examples lie inside the largest radius of their sample in some norm and change an answer certified there.

    Among them are all that can be violations. Almost always there are none, so that no pairs need be made.
    """
    near = np.zeros(len(attacks), dtype=bool)
    answer = attacks["adversarial_prediction"].to_numpy()
    for norm, rows in certificates.groupby("norm"):
        measured = attacks[norm] if norm in MEASURED_NORMS else attacks["distance"].where(attacks["norm"] == norm)
        samples = rows.groupby("index")
        reach = samples["radius"].max().reindex(attacks["index"]).to_numpy()
        lowest, highest = (
            samples["prediction"].agg(side).reindex(attacks["index"]).to_numpy() for side in ("min", "max")
        )
        near |= (measured.to_numpy() < reach) & ((answer != lowest) | (answer != highest))
    return near


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _attack_rows(
    attacks: pd.DataFrame, correct: pd.Series, eps_by_norm: Mapping[str, list[float]]
) -> list[dict[str, Any]]:
    """Each attack at its eps; a minimum-norm attack (eps NaN) at every eps that is counted in its norm."""
    rows = []
    groups: Any = attacks.groupby(["attack", "norm", "eps"], sort=True, dropna=False)
    for (attack, norm, eps), group in groups:
        for budget in eps_by_norm.get(norm, []) if math.isnan(eps) else [eps]:
            robust = int(robust_mask(group, correct, budget).sum())
            share = _share(robust, len(correct))
            rows.append({"attack": attack, "norm": norm, "eps": budget, "robust": robust, "accuracy": share})
    return rows


def _certificate_rows(
    certificates: pd.DataFrame, labels: pd.Series, eps_by_norm: Mapping[str, list[float]]
) -> list[dict[str, Any]]:
    rows = []
    groups: Any = certificates.groupby(["certificate", "guarantee", "norm"], sort=True)
    for (name, guarantee, norm), group in groups:
        for eps in eps_by_norm.get(norm, []):
            certified = int(certified_mask(group, labels, eps).sum())
            rows.append(
                {
                    "certificate": name,
                    "guarantee": guarantee,
                    "norm": norm,
                    "eps": eps,
                    "certified": certified,
                    "accuracy": _share(certified, len(labels)),
                }
            )
    return rows


def block_records(blocks: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the blocks' table as plain values, None where there is no number."""
    return [
        {str(key): value if isinstance(value, str) or math.isfinite(value) else None for key, value in row.items()}
        for row in blocks.to_dict(orient="records")
    ]
