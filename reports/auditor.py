"""A report for auditors: the sections that robustness standards require, from the tables of a run.

The sections follow what ISO/IEC 24029-2 (formal methods for the robustness of neural networks), article 15 of the
EU AI Act (accuracy, robustness and cybersecurity) and the vocabulary of NIST AI 100-2 (goal, knowledge and capability
of an adversary) require. The report does not claim conformity with any of them: it collects what a run records in one
place and states explicitly what is missing.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from robustres.errors import InputError
from robustres.reports.accuracies import accuracy_rows
from robustres.reports.formats import eps_text, norm_text, radius_text
from robustres.reports.provenance import command_line, guarantees
from robustres.reports.render import render
from robustres.reports.run import Run, load_run
from robustres.reports.sandwich import outcome, per_sample
from robustres.reports.verdict import verdict
from robustres.results import NETWORK, csv_text, write_atomically

# Statements that only the users of the network can make, and what each of them is for.
STATEMENTS: dict[str, str] = {
    "intended_domain": "what the network is used for, and on which inputs",
    "property": "the property required of the network, in words",
    "threshold_reason": "why these sizes of perturbation matter",
    "acceptance": "which share must be certified or must survive the attacks, and who decided this",
    "adversary_goal": "what an adversary wants, beyond any misclassification",
    "retest_trigger": "which changes require a new test",
    "responsible": "who is responsible for this report",
}
MOST_ROWS = 200


@dataclass(frozen=True)
class Section:
    """One section: facts as names and values, a table, notes, and a list of what is missing."""

    name: str
    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def write_auditor_report(folder: Path | str, statements: Mapping[str, str] | Path | None = None) -> Path:
    """Write auditor.html, auditor.md and auditor-samples.csv into the run's folder; return the path of auditor.html.

    statements: what only people can state, under the names in `STATEMENTS`, or a TOML file with them. What is left out
        is listed as missing; nothing is invented. Raises InputError if the folder contains no run, or for unknown
        statements.
    """
    folder = Path(folder)
    said = read_statements(statements)
    run = load_run(folder)
    samples = per_sample(run)
    replayed = pd.read_csv(folder / "replay.csv") if (folder / "replay.csv").is_file() else None
    sections = audited(run, samples, said, replayed)
    missing = [(section.title, entry) for section in sections for entry in section.missing]
    for name in ("auditor.html", "auditor.md"):
        text = render(name, run=run, sections=sections, missing=missing, statements=said)
        write_atomically(folder / name, text.encode())
    write_atomically(folder / "auditor-samples.csv", csv_text(sample_results(run, samples)).encode())
    return folder / "auditor.html"


def read_statements(given: Mapping[str, str] | Path | None) -> dict[str, str]:
    """Statements by name, from a mapping or a TOML file; raises InputError for unknown names."""
    if isinstance(given, Path):
        try:
            given = tomllib.loads(given.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the statements in {given}: {error}") from error
    found = dict(given or {})
    if unknown := sorted(found.keys() - STATEMENTS.keys()):
        raise InputError(f"there is no statement {unknown[0]!r}; the statements are {', '.join(STATEMENTS)}")
    if wrong := sorted(name for name, text in found.items() if not isinstance(text, str) or not text.strip()):
        raise InputError(f"the statement {wrong[0]!r} must be a non-empty string")
    return found


def audited(run: Run, samples: pd.DataFrame, said: Mapping[str, str], replayed: pd.DataFrame | None) -> list[Section]:
    """All sections in order; each lists what it is missing."""
    return [
        _domain(run, said),
        _property(run, said),
        _threat(run, said),
        _method(run),
        _results(run, samples),
        _samples(run, samples),
        _counterexamples(run, replayed),
        _limits(run),
        _environment(run),
        _retest(run, said),
    ]


def sample_results(run: Run, samples: pd.DataFrame) -> pd.DataFrame:
    """One row per sample: label, prediction, and for each norm the radius, the distance and the outcome at the middle
    eps.
    """
    frame = samples[["label", "prediction", "correct"]].copy()
    for norm in run.norms:
        frame[f"radius_{norm}"], frame[f"distance_{norm}"] = samples[f"radius_{norm}"], samples[f"distance_{norm}"]
        if (eps := run.headline_eps(norm)) is not None:
            frame[f"outcome_{norm}"] = outcome(samples, norm, eps)
    return frame.reset_index()


def _domain(run: Run, said: Mapping[str, str]) -> Section:
    data = run.manifest["data"]
    facts = [("data", data.get("source")), ("samples", f"{run.total:,}"), ("classes", data.get("classes"))]
    facts += [("sha256 of the data", data.get("sha256")), ("selection", run.manifest.get("selection"))]
    return _stated(Section("domain", "Intended domain", _facts(facts)), said, "intended_domain", "responsible")


def _property(run: Run, said: Mapping[str, str]) -> Section:
    facts = [
        ("property", "the prediction does not change under any perturbation within eps (local robustness)"),
        *((f"thresholds in {norm_text(norm)}", ", ".join(map(eps_text, run.eps[norm]))) for norm in run.norms),
        *(
            ("required", row["require"] + (": met" if row["met"] else ": not met"))
            for row in run.summary["requirements"]
        ),
    ]
    section = _stated(
        Section("property", "Property and thresholds", _facts(facts)),
        said,
        "property",
        "threshold_reason",
        "acceptance",
    )
    if not run.summary["requirements"]:
        section.missing.append("this run was not tested against a threshold (--require)")
    return section


def _threat(run: Run, said: Mapping[str, str]) -> Section:
    facts = [
        ("goal", "any misclassification (untargeted integrity violation, evasion at deployment time)"),
        ("knowledge", "white box: architecture, weights and gradients; the adversary may know this report"),
        ("capability", "one perturbation per image, within eps in the named norm, the image staying in [0, 1]"),
        ("perturbations", _nested(run.manifest.get("statement"), "perturbations")),
        (
            "not covered",
            "poisoning of training data, model extraction, and perturbations that are not bounded in these norms",
        ),
    ]
    section = _stated(Section("threat", "Threat model", _facts(facts)), said, "adversary_goal")
    if run.summary["attacks"]:
        section.columns.extend(("attack", "norm", "eps", "settings"))
        section.rows.extend(
            [row["name"], norm_text(row.get("norm")), eps_text(row.get("eps")), _text(row.get("settings"))]
            for row in run.manifest.get("attacks") or []
        )
    else:
        section.missing.append("no attack was run, so nothing bounds the robustness from above")
    return section


def _method(run: Run) -> Section:
    section = Section("method", "Method")
    certificates = run.tables["certificates"][["certificate", "function", "norm", "guarantee"]].drop_duplicates()
    section.columns.extend(("certificate", "of", "norm", "soundness"))
    section.rows.extend(
        [
            row["certificate"],
            "the network" if row["function"] == NETWORK else row["function"],
            norm_text(row["norm"]),
            row["guarantee"],
        ]
        for row in certificates.to_dict(orient="records")
    )
    section.facts.extend(
        _facts(
            [
                (
                    "soundness",
                    "certified radii do not exceed the true ones; every example was evaluated again on the model",
                ),
                ("completeness", "incomplete: samples that are neither certified nor broken are counted as open"),
                ("determinism", f"seed {run.manifest.get('seed')}; certifying is deterministic on one processor"),
                ("arithmetic", _text(run.manifest.get("dtype"))),
                ("TF32", _text(run.manifest.get("tf32"))),
            ]
        )
    )
    section.notes.extend(guarantees(run))
    if not len(certificates):
        section.missing.append("no certificate was computed, so nothing bounds the robustness from below")
    if run.summary["refused"]:
        section.missing.extend(
            f"no bound is known for {row['operation']} at {row['path'] or 'the top level of the network'}"
            for row in run.summary["refused"]
        )
    if not len(run.tables["diagnosis"]):
        section.missing.append("the attacks were not checked for masked gradients (--diagnose N)")
    return section


def _results(run: Run, samples: pd.DataFrame) -> Section:
    section = Section("results", "Results")
    section.notes.extend(sentence.text for sentence in verdict(run, samples))
    section.columns.extend(("what", "norm", "eps", "count", "accuracy", "95 % interval", "what the number is"))
    for row in accuracy_rows(run):
        share = "" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        section.rows.append(
            [
                row["name"],
                norm_text(row["norm"]) if row["norm"] else "",
                "" if row["eps"] is None else eps_text(row["eps"]),
                f"{row['count']} of {row['total']}",
                share,
                "" if row["low"] is None else f"{row['low']:.2%} to {row['high']:.2%}",
                ", ".join(filter(None, (row["side"], row["guarantee"]))),
            ]
        )
    return section


def _samples(run: Run, samples: pd.DataFrame) -> Section:
    section = Section("samples", "Results per input")
    norms = [norm for norm in run.norms if run.headline_eps(norm) is not None]
    section.columns.extend(("sample", "label", "answer"))
    for norm in norms:
        eps = eps_text(run.headline_eps(norm))
        section.columns.extend(
            (f"radius {norm_text(norm)}", f"example at {norm_text(norm)}", f"at {norm_text(norm)} {eps}")
        )
    known = {norm: list(outcome(samples, norm, run.headline_eps(norm) or 0.0)) for norm in norms}
    for place, (index, row) in enumerate(samples.head(MOST_ROWS).iterrows()):
        cells = [str(index), str(row["label"]), str(row["prediction"])]
        for norm in norms:
            distance = row[f"distance_{norm}"]
            cells += [radius_text(row[f"radius_{norm}"]), "none" if distance == float("inf") else f"{distance:.4g}"]
            cells.append(str(known[norm][place]))
        section.rows.append(cells)
    shown = min(MOST_ROWS, run.total)
    section.notes.append(f"{shown:,} of {run.total:,} samples are shown; auditor-samples.csv contains all of them.")
    if not run.total:
        section.missing.append("the run contains no samples yet")
    return section


def _counterexamples(run: Run, replayed: pd.DataFrame | None) -> Section:
    found = run.tables["attacks"]
    section = Section("counterexamples", "Counterexamples")
    fooled = int(found["fooled"].sum())
    verified = int((found["fooled"] & found["verified"]).sum())
    section.facts.extend([("found", f"{fooled:,}"), ("confirmed by a second evaluation", f"{verified:,}")])
    violations = run.summary["sandwich"]["violations"]
    section.facts.append(("contradictions between examples and certificates", f"{violations:,}"))
    if replayed is None:
        section.missing.append("the examples were not replayed (evaluate --save-examples, then robustres replay RUN)")
    else:
        still = int(replayed["fooled"].sum())
        section.facts.append(
            ("replayed from the stored images", f"{still:,} of {len(replayed):,} are still misclassified")
        )
        if "onnxruntime" not in replayed:
            section.missing.append("the examples were replayed by one implementation only (ONNX files have a second)")
    return section


def _limits(run: Run) -> Section:
    notes = [
        "The statements refer to the samples listed; they say nothing about other samples.",
        "They refer to perturbations of the stated norms and sizes, and to no other change of an image.",
        "They refer to the weights with the digest below. Other weights require another run.",
        "Corruptions, distribution shifts and fairness were not tested.",
    ]
    if not run.digest:
        notes.append("The run is not finished: its digest is missing and its tables may be incomplete.")
    return Section("limits", "Limits", notes=notes)


def _environment(run: Run) -> Section:
    manifest = run.manifest
    facts = [
        ("run", manifest.get("id")),
        ("created", manifest.get("created")),
        ("command", command_line(run)),
        ("digest of run.json and all parts", run.digest),
        *((f"model {key}", value) for key, value in manifest["model"].items()),
        *((f"version of {key}", value) for key, value in (manifest.get("versions") or {}).items()),
        *((f"hardware: {key}", value) for key, value in (manifest.get("hardware") or {}).items()),
    ]
    section = Section("environment", "Environment and identity", _facts(facts))
    for name, value in (
        ("digest", run.digest),
        ("versions", manifest.get("versions")),
        ("hardware", manifest.get("hardware")),
    ):
        if not value:
            section.missing.append(f"the run does not record its {name}")
    return section


def _retest(run: Run, said: Mapping[str, str]) -> Section:
    notes = [
        "A new test is needed when the weights, the normalisation, the data or the thresholds change: each of them "
        "changes the identity of the run.",
        "Repeating the command above on the same weights and data gives a run of the same identity; compare both with "
        "robustres compare.",
    ]
    return _stated(Section("retest", "Re-test", notes=notes), said, "retest_trigger")


def _stated(section: Section, said: Mapping[str, str], *names: str) -> Section:
    """The section with the users' statements first; those they did not make are listed as missing."""
    stated = [(name.replace("_", " "), said[name]) for name in names if name in said]
    section.facts[:0] = stated
    section.missing.extend(f"not stated: {STATEMENTS[name]} ({name})" for name in names if name not in said)
    return section


def _facts(rows: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(name, _text(value)) for name, value in rows if value not in (None, "", [], {})]


def _nested(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
