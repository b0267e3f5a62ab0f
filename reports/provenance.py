"""Where a run's numbers come from, what in them is probabilistic, and how to make them again."""

import shlex
from typing import Any

from robustres.reports.formats import norm_text
from robustres.reports.run import Run


def provenance_rows(run: Run) -> list[tuple[str, str]]:
    """Names and values of everything the manifest says, for people; what it does not say is left out."""
    manifest = run.manifest
    rows = [
        ("command", command_line(run)),
        ("created", manifest.get("created")),
        ("run", manifest.get("id")),
        ("digest of run.json and all parts", run.digest or "none: the run is not finished"),
        *((f"model {key}", value) for key, value in manifest["model"].items()),
        *((f"data {key}", value) for key, value in manifest["data"].items() if key != "class_names"),
        ("seed", manifest.get("seed")),
        ("data types", manifest.get("dtype")),
        ("TF32", manifest.get("tf32")),
        *((f"{key} version", value) for key, value in (manifest.get("versions") or {}).items()),
        *((f"hardware {key}", value) for key, value in (manifest.get("hardware") or {}).items()),
        *((f"setting {key}", value) for key, value in (manifest.get("settings") or {}).items()),
    ]
    return [(name, _text(value)) for name, value in rows if value is not None and value != ""]


def command_line(run: Run) -> str:
    """The command that made the run, quoted for a shell; empty where the run was made from Python."""
    command = run.manifest.get("command") or ""
    return command if isinstance(command, str) else shlex.join(map(str, command))


def guarantees(run: Run) -> list[str]:
    """What kind of statement each number of the report is."""
    lines = [
        "Clean accuracy is counted.",
        "Attacked accuracy is an upper bound of the accuracy under the best attack: a better attack may find more.",
    ]
    certificates = run.tables["certificates"][["certificate", "norm", "guarantee"]].drop_duplicates()
    for row in certificates.sort_values(["certificate", "norm"]).to_dict(orient="records"):
        lines.append(f"Certificate {row['certificate']} in {norm_text(row['norm'])}: {row['guarantee']}.")
    for guarantee in sorted(set(run.tables["blocks"]["guarantee"])):
        names = run.tables["blocks"].loc[run.tables["blocks"]["guarantee"] == guarantee, "name"]
        lines.append(f"Bounds of {len(names)} blocks: {guarantee}.")
    if len(run.tables["blocks"]):
        lines.append("Lower estimates show how loose a bound may be; nothing is certified with them.")
    lines.append("Confidence intervals (95 %, Wilson) speak of other images drawn like these, not of the bounds.")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
