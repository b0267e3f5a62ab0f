"""The layout of the repository: layers, packages and names."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustres.moved import MovedModules

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = ("attacks", "certify", "reports")
FLOORS = (
    {"arguments", "at_hand", "errors", "threat", "numerics", "guard", "precision", "results", "moved"},
    {"attacks", "certify"},
    {"models", "data"},
    {"training", "dynamics"},
    {"evaluation", "reports"},
    {"cli", "calls"},
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
# In the lowest layer a module may use its neighbours; elsewhere a package may use only lower layers.
LOWEST = FLOORS[0]


def source_files() -> list[tuple[str, Path]]:
    """Every source file of the package, with the part of the layout to which it belongs."""
    files = [(part, file) for part in TOP_LEVEL for file in sorted((ROOT / part).rglob("*.py"))]
    for file in sorted((ROOT / "robustres").rglob("*.py")):
        part = file.relative_to(ROOT / "robustres").parts[0]
        if part not in TOP_LEVEL:
            files.append((part.removesuffix(".py"), file))
    return files


def imported_parts(file: Path) -> Iterator[tuple[int, str]]:
    """Line and part of every import of robustres.PART anywhere in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write the import from robustres in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "robustres" and len(parts) > 1:
                yield node.lineno, parts[1]


def test_every_import_goes_to_a_lower_layer() -> None:
    wrong = []
    for part, file in source_files():
        if part in {"__init__", "__main__"}:  # the two entry points of the package, which may import everything
            continue
        for line, other in imported_parts(file):
            if other == part or other.startswith("__") or (part in LOWEST and other in LOWEST):
                continue
            if LEVEL[other] >= LEVEL[part]:
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports robustres.{other}")
    assert not wrong, "\n".join(wrong)


def test_reports_read_tables_and_nothing_else() -> None:
    allowed = LOWEST | {"reports", "__version__"}
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports robustres.{other}"
        for part, file in source_files()
        if part == "reports"
        for line, other in imported_parts(file)
        if other not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_the_package_list_contains_every_folder() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    inside = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "robustres").rglob("__init__.py")
        if not any(parent.is_symlink() for parent in file.parents)
    }
    on_top = {
        "robustres." + ".".join(file.parent.relative_to(ROOT).parts)
        for part in TOP_LEVEL
        for file in (ROOT / part).rglob("__init__.py")
    }
    assert listed == inside | on_top


def test_the_three_links_point_to_the_top_level_folders() -> None:
    for part in TOP_LEVEL:
        link = ROOT / "robustres" / part
        assert link.is_symlink()
        assert link.resolve() == ROOT / part


@pytest.mark.parametrize("part", TOP_LEVEL)
def test_the_bare_name_cannot_be_imported(part: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {part}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"import robustres.{part}" in done.stderr


def test_no_file_imports_by_the_bare_name() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for _, file in source_files()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in TOP_LEVEL
    ]
    assert not wrong, "\n".join(wrong)


def test_help_does_not_import_torch() -> None:
    code = "import sys, robustres.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# The subpackages of the large packages, from the lowest up: each may use itself and those before it.
ROOMS = {
    "certify": (
        *("proof", "maps", "fourier", "graph", "norms", "lower"),
        *("blocks", "bounds", "local", "radii", "audits"),
    ),
    "attacks": ("geometry", "base", "search", "methods"),
    "robustres/models": ("constraints", "blocks", "networks", "sources"),
    "robustres/dynamics": ("measures", "small_networks", "demonstrations", "observations"),
}
# Modules allowed beside the subpackages: the list of public names and the modules that use all subpackages.
DOORS = {
    "certify": {"__init__.py"},
    "attacks": {"__init__.py", "registry.py", "diagnosis.py", "curve.py", "optimality_measure.py"},
    "robustres/models": {"__init__.py"},
    "robustres/dynamics": {"__init__.py", "laboratory.py"},
}


@pytest.mark.parametrize("folder", ROOMS)
def test_every_import_between_subpackages_goes_down(folder: str) -> None:
    package = f"robustres.{Path(folder).name}"
    level = {room: height for height, room in enumerate(ROOMS[folder])}
    wrong = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        inside = file.relative_to(ROOT / folder).parts
        if len(inside) == 1:
            assert file.name in DOORS[folder], f"{folder}/{file.name} belongs in a room: {', '.join(level)}"
            continue
        assert inside[0] in level, f"{folder}/{inside[0]} is not one of the rooms listed in this test"
        for line, name in imported_names(file):
            parts = name.removeprefix(f"{package}.").split(".")
            if name.startswith(f"{package}.") and level.get(parts[0], len(level)) > level[inside[0]]:
                wrong.append(f"{folder}/{'/'.join(inside)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def imported_names(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of every `from` import in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def test_modules_are_still_importable_under_their_former_names() -> None:
    for new in MovedModules.names.values():
        assert (ROOT / f"{new.replace('.', '/')}.py").is_file(), f"robustres/moved.py names {new}, which is not there"
    code = """
import robustres
from robustres.certify.convolution import Convolution
from robustres.certify.maps import convolution
assert convolution.Convolution is Convolution and convolution.__spec__.name.endswith("maps.convolution")
import robustres.certify.lipschitz
assert callable(robustres.certify.lipschitz) and callable(robustres.lipschitz)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
