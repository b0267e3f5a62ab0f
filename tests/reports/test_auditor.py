"""The report for auditors: every section from any run, with missing information stated and nothing invented."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustres.cli.main import commands
from robustres.errors import InputError
from robustres.reports import write_auditor_report
from robustres.reports.auditor import STATEMENTS, audited, read_statements
from robustres.reports.run import load_run
from robustres.reports.sandwich import per_sample

TITLES = (
    *("Intended domain", "Property and thresholds", "Threat model", "Method", "Results", "Results per input"),
    *("Counterexamples", "Limits", "Environment and identity", "Re-test"),
)


def test_both_forms_have_every_section_and_the_same_digest(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "net", count=30)
    page = write_auditor_report(folder)
    for text in (page.read_text(), (folder / "auditor.md").read_text()):
        assert all(title in text for title in TITLES)
        assert "ab" * 32 in text  # the digest of the weights
        assert "What is missing" in text
    assert len(pd.read_csv(folder / "auditor-samples.csv")) == 30


def test_missing_statements_are_marked_and_given_ones_are_shown(tmp_path: Path, write_run: Any) -> None:
    folder = write_run(tmp_path / "net", count=30)
    write_auditor_report(folder)
    text = (folder / "auditor.md").read_text()
    assert text.count("not stated") == 2 * len(STATEMENTS)  # once in the list at the top, once in its section
    file = tmp_path / "said.toml"
    file.write_text('intended_domain = "Digits on <forms>"\nretest_trigger = "New scanner"\n')
    write_auditor_report(folder, file)
    text, page = (folder / "auditor.md").read_text(), (folder / "auditor.html").read_text()
    assert text.count("not stated") == 2 * (len(STATEMENTS) - 2)
    assert "New scanner" in text
    assert "Digits on &lt;forms&gt;" in page
    with pytest.raises(InputError, match="no statement 'colour'"):
        read_statements({"colour": "blue"})
    with pytest.raises(InputError, match="non-empty"):
        read_statements({"property": " "})


def test_a_run_without_certificates_or_attacks_says_so(tmp_path: Path, write_run: Any) -> None:
    run = load_run(write_run(tmp_path / "net", count=10, without=("certificates", "attacks"), attacks=[]))
    missing = " ".join(entry for section in audited(run, per_sample(run), {}, None) for entry in section.missing)
    assert "no certificate was computed" in missing
    assert "no attack was run" in missing
    assert "not replayed" in missing


def test_the_table_per_input_agrees_with_the_tables_of_the_run(tmp_path: Path, write_run: Any) -> None:
    run = load_run(write_run(tmp_path / "net", count=20))
    samples = per_sample(run)
    section = next(one for one in audited(run, samples, {}, None) if one.name == "samples")
    assert len(section.rows) == 20
    assert all(len(row) == len(section.columns) for row in section.rows)
    for row in section.rows:
        radius = samples.loc[int(row[0]), f"radius_{run.norms[0]}"]
        assert float(row[3].replace("–", "0")) <= radius


def test_the_command_writes_it(tmp_path: Path, write_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "net", count=10)
    commands(["report", str(folder), "--format", "auditor"], standalone_mode=False)
    assert "auditor.html" in capsys.readouterr().out
    assert (folder / "auditor.html").is_file()
    with pytest.raises(InputError, match="run or auditor"):
        commands(["report", str(folder), "--format", "poem"], standalone_mode=False)
    with pytest.raises(InputError, match="requires --format auditor"):
        commands(["report", str(folder), "--statements", str(tmp_path)], standalone_mode=False)
