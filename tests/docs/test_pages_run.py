"""The code of the tutorials and how-to pages runs as written, page by page, from top to bottom."""

import doctest
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from robustres.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Pages that take more than ten seconds on one core.
SLOW = {"index.md", "how-to/runs.md", "tutorials/certify.md", "tutorials/evaluate.md", "tutorials/train.md"}
PAGES = sorted(
    page.relative_to(DOCS).as_posix()
    for page in (DOCS / "index.md", *(DOCS / "tutorials").glob("*.md"), *(DOCS / "how-to").glob("*.md"))
    if re.search(r"^```(python|sh)$", page.read_text(), re.M)
)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in PAGES]
)
def test_the_code_of_a_page_runs(page: str, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for language, block in re.findall(r"^```(python|sh)\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S):
        if language == "sh":
            for line in block.strip().splitlines():
                run_command(shlex.split(line, comments=True), monkeypatch)
        elif ">>>" in block:
            run_examples(block, names, page)
        else:
            exec(compile(block, page, "exec"), names)
    assert len(names) > 1 or (clone / "runs").is_dir()


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one shell command, which must succeed."""
    assert words[0] == "robustres"
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        app()
    assert stop.value.code in (0, None), words


def run_examples(block: str, names: dict[str, Any], page: str) -> None:
    """Run examples with their expected output, in the namespace that the page has built so far."""
    example = doctest.DocTestParser().get_doctest(block, names, page, page, 0)
    found = doctest.DocTestRunner().run(example, clear_globs=False)
    assert found.attempted > 0
    assert found.failed == 0
