"""The command line, called in this process."""

import sys

import pytest

from robustres.cli.main import app


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `robustres ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["robustres", *arguments])
    with pytest.raises(SystemExit) as stop:
        app()
    return stop.value.code if isinstance(stop.value.code, int) else 0
