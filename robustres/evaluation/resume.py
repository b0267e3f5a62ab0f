"""The contents of a run folder: whether they belong to this run, and which parts are still to be computed."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from robustres.certify import LipschitzReport
from robustres.errors import InputError
from robustres.results import WHOLE, RunFolder, empty_table, read_seal, sha256

log = logging.getLogger(__name__)


def require_same_run(folder: RunFolder, identity: dict[str, Any]) -> bool:
    """Whether the folder already contains a run; raises InputError, which names the difference, if it is a different
    run.
    """
    if not (folder.path / "run.json").exists():
        return False
    theirs = folder.manifest().get("identity", {})
    listed = "; ".join(
        f"{key}: {there} there, {now} now" for key, there, now in _differences(theirs, identity) if there != now
    )
    if listed:
        raise InputError(
            f"{folder.path} contains a different run ({listed}); choose another --out, or start over with --overwrite"
        )
    return True


def open_run(folder: RunFolder, manifest: dict[str, Any], report: LipschitzReport | None, *, overwrite: bool) -> None:
    """Begin a run in an empty folder, or continue the one begun there; only for the holder of the folder's lock."""
    if overwrite:
        folder.clear()
    folder.remove_leftovers()
    begun = require_same_run(folder, manifest["identity"])
    if begun:
        _require_sealed_manifest(folder)
        if (known := folder.manifest()).get("require") != manifest["require"]:
            folder.unseal()
            folder.write_manifest({**known, "require": manifest["require"]})
    if not begun:
        folder.write_manifest(manifest)
    if not usable(folder, WHOLE):
        folder.finish_part(WHOLE, {"blocks": empty_table("blocks") if report is None else report.to_frame()})


def pending(folder: RunFolder, spans: Sequence[range]) -> list[range]:
    """The parts that are not finished; a finished part that has been damaged is named in the log and computed again."""
    return [span for span in spans if not usable(folder, part_name(span))]


def part_name(span: range) -> str:
    """The name of the part that begins with this sample."""
    return f"{span.start:09d}"


def usable(folder: RunFolder, part: str) -> bool:
    """Whether a part is finished and undamaged; a damaged file is named in the log."""
    parts = folder.parts()
    if not parts.digests(part):
        return False
    damaged = parts.damaged(part)
    for file in damaged:
        log.warning("%s is damaged: its sha256 is not the one recorded; this part is computed again", file)
    return not damaged


def _require_sealed_manifest(folder: RunFolder) -> None:
    """Raise InputError if the manifest was changed after the run ended: parts can be recomputed, a manifest cannot."""
    seal = read_seal(folder.path)
    file = folder.path / "run.json"
    if seal is not None and seal["files"].get("run.json") != sha256(file.read_bytes()):
        raise InputError(f"{file} was changed after the run ended; start over with --overwrite")


def _differences(theirs: dict[str, Any], mine: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key with its two values, recursively for dictionaries."""
    for key in sorted(theirs.keys() | mine.keys()):
        there, now = theirs.get(key), mine.get(key)
        if isinstance(there, dict) and isinstance(now, dict):
            yield from _differences(there, now, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", there, now
