"""Fixtures for every test: where the optional shared files lie, and one thread's worth of determinism."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real networks and data that some tests use; skipped where it is missing."""
    folder = Path(os.environ.get("ROBUSTRES_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip("the shared models and data are not here; set ROBUSTRES_SHARED to their folder")
    return folder
