"""Fixtures for every test: the folder of optional shared files, and isolation from the user's cache."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real networks and data that some tests use; such tests are skipped if it is missing."""
    folder = Path(os.environ.get("ROBUSTRES_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip("the shared models and data are not here; set ROBUSTRES_SHARED to their folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a separate cache, so that tests neither find stored bounds nor add any to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
