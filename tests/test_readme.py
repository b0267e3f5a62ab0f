"""The commands and examples in the README run as written, from a folder with `examples/` as in a clone."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from robustres.cli.main import app, commands

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_command_on_a_network_writes_a_report(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = re.findall(r"^    (robustres .+)$", README, re.M)
    assert len(lines) == 1
    words = shlex.split(lines[0])
    monkeypatch.setattr(sys, "argv", [*words, "--limit", "30"])  # fewer images, to keep the test short
    with pytest.raises(SystemExit) as stop:
        app()
    assert stop.value.code == 0
    assert "`runs/digits-digits/report.html`" in README
    assert (clone / "runs" / "digits-digits" / "report.html").is_file()


def test_the_python_examples_run(clone: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(block.replace("limit=100", "limit=20"), {})
    assert (clone / "runs" / "mine" / "report.html").is_file()


def test_every_command_is_in_the_table() -> None:
    for command in commands.registered_commands:
        assert command.callback is not None
        assert f"`robustres {command.callback.__name__}" in README
