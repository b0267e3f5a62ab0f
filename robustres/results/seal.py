"""The seal of a finished run: one digest of its manifest and all its parts, for citation."""

import json
from pathlib import Path
from typing import Any

from robustres.errors import InputError
from robustres.results.files import json_text, write_atomically
from robustres.results.parts import Parts, sha256

NAME = "digest.json"


def write_seal(path: Path, parts: Parts) -> str:
    """Write digest.json for the run in `path` as it is now; returns the digest."""
    files = {name: sha256((path / name).read_bytes()) for name in _sealed(parts)}
    digest = _digest(files)
    write_atomically(path / NAME, json_text({"digest": digest, "files": files}).encode())
    return digest


def read_seal(path: Path) -> dict[str, Any] | None:
    """The seal with `digest` and `files`, None if the run has none; raises InputError if it is damaged."""
    file = path / NAME
    if not file.exists():
        return None
    cure = "evaluate again with the same command and --out, or restore the file"
    try:
        seal = json.loads(file.read_text())
        if _digest(seal["files"]) == seal["digest"]:
            return dict(seal)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}: {error}); {cure}") from error
    raise InputError(f"{file} is damaged: its digest is not that of its own entries; {cure}")


def require_seal(path: Path, parts: Parts) -> str | None:
    """The digest of a finished run whose files are as they were sealed, None for an unfinished run.

    InputError names the first file that was changed, added or removed since.
    """
    seal = read_seal(path)
    if seal is None:
        return None
    now = {name: sha256((path / name).read_bytes()) for name in _sealed(parts)}
    for name in sorted(seal["files"].keys() | now.keys()):
        if seal["files"].get(name) != now.get(name):
            what = "was lost" if name not in now else "was added" if name not in seal["files"] else "was changed"
            raise InputError(
                f"{path / name} {what} after the run ended (digest.json has its original digest); restore it, or "
                "start this run over with --overwrite"
            )
    return str(seal["digest"])


def _sealed(parts: Parts) -> list[str]:
    """The manifest and the record of every part, which contains the digests of its files."""
    return ["run.json", *(f"parts/{part}.json" for part in parts.names())]


def _digest(files: dict[str, str]) -> str:
    return sha256(json.dumps(files, sort_keys=True).encode())
