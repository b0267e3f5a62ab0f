"""Whether a folder may be written to: it is empty, has no files with the names to be written, or is our own."""

import json
from collections.abc import Sequence
from pathlib import Path

from robustres.errors import InputError
from robustres.results.schema import ARCHIVE, PROOFS

# Files that both a report and a comparison write.
REPORT_FILES = (
    *("report.html", "report.md", "tables.tex", "model_card.md", "samples.csv", "blocks.csv"),
    *("summary.json", "robustbench.json", "figures"),
    *("auditor.html", "auditor.md", "auditor-samples.csv"),
)
RUN_FILES = ("run.json", "digest.json", "parts", "timings", "examples", PROOFS, ARCHIVE, *REPORT_FILES)


def require_own(folder: Path, names: Sequence[str], *, marker: str, entry: str) -> None:
    """Raise InputError if one of the names exists in the folder and was not left by an earlier result of the same kind.

    It was if `marker`, a JSON file among the names, is an object with the entry.
    """
    there = [name for name in names if (folder / name).exists()]
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another --out")
    if there and not _has(folder / marker, entry):
        raise InputError(
            f"{folder} contains {there[0]}, which was not written by this command and would be overwritten; choose "
            "another --out"
        )


def _has(file: Path, entry: str) -> bool:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and entry in content


def require_own_run(folder: Path) -> None:
    """Raise InputError if an evaluation into the folder would overwrite a file that no evaluation wrote."""
    damaged = (folder / "parts" / "all.json").is_file() and (folder / "run.json").is_file()
    if not damaged:
        require_own(folder, RUN_FILES, marker="run.json", entry="schema_version")
