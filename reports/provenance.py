"""Where a run's numbers come from, which of them are probabilistic, and how to reproduce them."""

import shlex
from typing import Any

from robustres.reports.formats import eps_text, norm_text
from robustres.reports.run import Run
from robustres.results import NETWORK


def provenance_rows(run: Run) -> list[tuple[str, str]]:
    """Names and values of everything in the manifest, for readers; missing entries are left out."""
    manifest = run.manifest
    rows = [
        ("command", command_line(run)),
        ("created", manifest.get("created")),
        ("run", manifest.get("id")),
        ("digest of run.json and all parts", run.digest or "none: the run is not finished"),
        *((f"model {key}", value) for key, value in manifest["model"].items()),
        *((f"data {key}", value) for key, value in manifest["data"].items() if key != "class_names"),
        ("classes by number", _classes(manifest["data"].get("class_names"))),
        ("selection of samples", manifest.get("selection")),
        ("what is stated", manifest.get("statement")),
        *(
            (f"attack {row['name']} ({row.get('norm')}, eps {eps_text(row.get('eps'))})", row.get("settings"))
            for row in manifest.get("attacks") or []
        ),
        ("certificates", manifest.get("certificates")),
        ("seed", manifest.get("seed")),
        ("data types", manifest.get("dtype")),
        ("TF32", manifest.get("tf32")),
        *((f"{key} version", value) for key, value in (manifest.get("versions") or {}).items()),
        *((f"hardware {key}", value) for key, value in (manifest.get("hardware") or {}).items()),
        *((f"setting {key}", value) for key, value in (manifest.get("settings") or {}).items()),
    ]
    return [(name, _text(value)) for name, value in rows if value is not None and value != ""]


def command_line(run: Run) -> str:
    """The command that made the run, quoted for a shell; empty if the run was made from Python."""
    command = run.manifest.get("command") or ""
    return command if isinstance(command, str) else shlex.join(map(str, command))


def guarantees(run: Run) -> list[str]:
    """What kind of statement each number in the report makes."""
    lines = [
        "Clean accuracy is counted.",
        "Attacked accuracy is an upper bound on the accuracy under the best attack: a better attack may find more.",
    ]
    certificates = run.tables["certificates"][["certificate", "function", "norm", "guarantee"]].drop_duplicates()
    for row in certificates.sort_values(["certificate", "norm"]).to_dict(orient="records"):
        of = "the network" if row["function"] == NETWORK else f"{row['function']}, which is a different function"
        lines.append(f"Certificate {row['certificate']} in {norm_text(row['norm'])}: {row['guarantee']}, for {of}.")
    for guarantee in sorted(set(run.tables["blocks"]["guarantee"])):
        names = run.tables["blocks"].loc[run.tables["blocks"]["guarantee"] == guarantee, "name"]
        lines.append(f"Bounds on {len(names)} blocks: {guarantee}.")
    if len(run.tables["blocks"]):
        lines.append("Lower estimates show how loose a bound may be; nothing is certified with them.")
        lines.append(
            "No such bound below: refers to bounds that use only the range of the slopes, not the block itself."
        )
    lines.append("Confidence intervals (95 %, Wilson) refer to other images sampled like these, not to the bounds.")
    return lines


def _classes(names: list[str] | None) -> str | None:
    """The number and the name of every class, unless the name is the number itself."""
    numbered = list(enumerate(names or []))
    return (
        None if all(str(number) == name for number, name in numbered) else ", ".join(f"{i}: {n}" for i, n in numbered)
    )


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
