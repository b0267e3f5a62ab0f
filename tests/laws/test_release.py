"""What a release claims about itself agrees in all the places where it stands."""

import re
import tomllib
from pathlib import Path

import yaml

import robustres

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_the_version_stands_in_one_place_and_the_citation_agrees() -> None:
    assert "version" in PROJECT["dynamic"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == robustres.__version__


def test_the_changelog_begins_with_what_is_unreleased_and_repeats_no_heading() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    sections = re.split(r"^## ", text, flags=re.M)[1:]
    assert sections[0].startswith("[Unreleased]")
    for section in sections:
        headings = re.findall(r"^### (\w+)$", section, re.M)
        assert len(headings) == len(set(headings))
        assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_smallest_python_and_torch_that_are_claimed_are_tested() -> None:
    smallest = PROJECT["requires-python"].removeprefix(">=")
    torch = next(entry for entry in PROJECT["dependencies"] if entry.startswith("torch>=")).removeprefix("torch>=")
    assert f'python: "{smallest}", torch: "torch=={torch}.*' in WORKFLOW


def test_files_that_the_workflow_names_exist() -> None:
    for name in re.findall(r"tests/[\w/]+\.py", WORKFLOW):
        assert (ROOT / name).is_file(), name
