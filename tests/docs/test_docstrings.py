"""Every example in a docstring runs and gives the stated output."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    file.relative_to(ROOT)
    for folder in ("attacks", "certify", "reports", "robustres")
    for file in (ROOT / folder).rglob("*.py")
    if ">>> " in file.read_text() and not any(parent.is_symlink() for parent in file.parents)
)


def test_the_number_of_examples_does_not_shrink() -> None:
    assert len(FILES) >= 40


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_examples_of_a_file_run(file: Path) -> None:
    name = ".".join(file.with_suffix("").parts)
    module = import_module(name if file.parts[0] == "robustres" else f"robustres.{name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
