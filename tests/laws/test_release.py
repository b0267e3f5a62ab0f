"""The facts that a release states about itself agree in all places."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import robustres

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_the_version_is_stated_once_and_the_citation_agrees() -> None:
    assert "version" in PROJECT["dynamic"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == robustres.__version__


def test_the_changelog_begins_with_unreleased_and_repeats_no_heading() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    sections = re.split(r"^## ", text, flags=re.M)[1:]
    assert sections[0].startswith("[Unreleased]")
    for section in sections:
        headings = re.findall(r"^### (\w+)$", section, re.M)
        assert len(headings) == len(set(headings))
        assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_claimed_minimum_versions_of_python_and_torch_are_tested() -> None:
    smallest = PROJECT["requires-python"].removeprefix(">=")
    torch = next(entry for entry in PROJECT["dependencies"] if entry.startswith("torch>=")).removeprefix("torch>=")
    assert f'python: "{smallest}", torch: "torch=={torch}.*' in WORKFLOW


def test_the_files_named_in_the_workflow_exist() -> None:
    for name in re.findall(r"tests/[\w/]+\.py", WORKFLOW):
        assert (ROOT / name).is_file(), name


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that a release changes, with unreleased changes, committed in a separate repository."""
    for name in ("CHANGELOG.md", "CITATION.cff", "robustres/__init__.py", ".ci/release.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("[Unreleased]\n", "[Unreleased]\n\n### Added\n- One.\n", 1))
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", "nobody")
    git(tmp_path, "config", "user.email", "nobody@example.org")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def release(folder: Path, version: str) -> str:
    """The output of the command, on either stream."""
    command = [sys.executable, ".ci/release.py", version]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_a_release_is_one_command(clone: Path) -> None:
    assert "tagged" in release(clone, "12.3.4")
    assert git(clone, "tag").split() == ["v12.3.4"]
    assert git(clone, "status", "--porcelain") == ""
    assert '__version__ = "12.3.4"' in (clone / "robustres" / "__init__.py").read_text()
    citation = yaml.safe_load((clone / "CITATION.cff").read_text())
    assert citation["version"] == "12.3.4"
    sections = re.split(r"^## ", (clone / "CHANGELOG.md").read_text(), flags=re.M)[1:]
    assert sections[0] == "[Unreleased]\n\n"
    assert sections[1].startswith(f"[12.3.4] - {citation['date-released']}\n\n### ")


def test_an_impossible_release_changes_nothing(clone: Path) -> None:
    assert "MAJOR.MINOR.PATCH" in release(clone, "v1")
    release(clone, "12.3.4")
    assert "nothing to release" in release(clone, "12.3.5")
    assert "already has a section for 12.3.4" in release(clone, "12.3.4")
    (clone / "CITATION.cff").write_text("")
    assert "uncommitted changes" in release(clone, "12.3.5")
    assert git(clone, "tag").split() == ["v12.3.4"]
