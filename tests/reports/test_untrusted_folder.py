"""A run folder is untrusted input: names never become paths, and every modification is reported."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustres.errors import InputError, StorageError
from robustres.reports import write_comparison, write_report
from robustres.reports.figure import Figure
from robustres.results import RunFolder, csv_text


@pytest.fixture
def folder(tmp_path: Path, write_run: Any) -> Path:
    path: Path = write_run(tmp_path / "run", count=40, id="ab", parts=2)
    manifest = RunFolder(path).manifest()
    RunFolder(path).write_manifest({**manifest, "parts": ["0000", "0001"]})
    RunFolder(path).seal()
    return path


def test_a_sealed_run_has_a_digest_and_a_report(folder: Path) -> None:
    digest = RunFolder(folder).digest()
    assert digest is not None
    assert len(digest) == 64
    assert digest in write_report(folder).read_text()


MANIFESTS: list[tuple[Any, str]] = [
    ([], "must contain a JSON object"),
    ({"schema_version": 99}, "schema version 99"),
    ({"schema_version": "2"}, "schema version '2'"),
    ({"eps": {"/../../victim": [0.1]}}, "eps must be an object of l2, linf, l1"),
    ({"eps": {"l2": ["a"]}}, "eps must be"),
    ({"eps": {"l2": [-1]}}, "eps must be"),
    ({"eps": {"l2": 0.1}}, "eps must be"),
    ({"model": "resnet"}, "model must be an object"),
    ({"model": {"sha256": 3}}, "model.sha256 must be text"),
    ({"model": {"parameters": "many"}}, "model.parameters must be a count"),
    ({"data": []}, "data must be an object"),
    ({"data": {"class_names": {"a": 1}}}, "data.class_names must be a list"),
    ({"lipschitz": [1, 2]}, "lipschitz must be an object"),
    ({"lipschitz": {"upper": "9"}}, "lipschitz.upper must be a number"),
    ({"refused": [{"path": 1}]}, "refused must be a list"),
    ({"command": 7}, "command must be"),
    ({"hardware": "fast"}, "hardware must be an object"),
    ({"parts": "all"}, "parts must be a list"),
]


@pytest.mark.parametrize(("content", "match"), MANIFESTS, ids=[match for _, match in MANIFESTS])
def test_a_manifest_of_a_wrong_shape_is_named(content: Any, match: str, folder: Path) -> None:
    if isinstance(content, dict):
        content = {**json.loads((folder / "run.json").read_text()), **content}
    (folder / "run.json").write_text(json.dumps(content))
    before = sorted(folder.parent.parent.rglob("*"))
    with pytest.raises(InputError, match=match):
        write_report(folder)
    assert sorted(folder.parent.parent.rglob("*")) == before


@pytest.mark.parametrize("text", ["", "{", '{"a": ', "[" * 100_000, "\udcff"])
def test_invalid_json_is_named(text: str, folder: Path) -> None:
    (folder / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        write_report(folder)


def test_a_changed_bound_is_not_accepted(folder: Path) -> None:
    manifest = json.loads((folder / "run.json").read_text())
    manifest["lipschitz"]["upper"] = 1.0
    (folder / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"run\.json was changed after the run ended"):
        write_report(folder)


def test_a_table_exchanged_together_with_its_record_is_not_accepted(folder: Path) -> None:
    table = RunFolder(folder).part("certificates", "0000")
    RunFolder(folder).write_part("certificates", "0000", table.assign(radius=0.0))
    with pytest.raises(InputError, match=r"0000\.json was changed after"):
        write_report(folder)


@pytest.mark.parametrize(
    "name", ["attacks-0000 (conflicted copy).parquet", "attacks-0000 2.parquet", "attacks-0009.parquet"]
)
def test_a_copy_of_a_part_is_refused_and_not_counted(name: str, folder: Path) -> None:
    shutil.copy(folder / "parts" / "attacks-0000.parquet", folder / "parts" / name)
    with pytest.raises(InputError, match="not recorded by any part of this run"):
        write_report(folder)


def test_a_part_that_the_manifest_does_not_list_is_refused(folder: Path) -> None:
    RunFolder(folder).write_part("attacks", "0002", RunFolder(folder).part("attacks", "0000"))
    with pytest.raises(InputError, match=r"0002\.json does not belong to this run"):
        write_report(folder)


def test_rows_that_occur_in_two_parts_are_refused(tmp_path: Path, write_run: Any) -> None:
    folder = RunFolder(write_run(tmp_path / "run", count=40))
    folder.write_part("attacks", "0001", folder.part("attacks", "0000"))
    with pytest.raises(InputError, match="two rows of table 'attacks'"):
        write_report(folder.path)


def test_swapped_parts_and_parts_of_another_run_are_refused(folder: Path, tmp_path: Path, write_run: Any) -> None:
    parts = folder / "parts"
    (parts / "attacks-0000.parquet").rename(parts / "kept")
    (parts / "attacks-0001.parquet").rename(parts / "attacks-0000.parquet")
    (parts / "kept").rename(parts / "attacks-0001.parquet")
    with pytest.raises(InputError, match=r"attacks-0000\.parquet is damaged"):
        RunFolder(folder).tables()
    other = write_run(tmp_path / "other", count=40, id="cd", seed=1)
    for file in (other / "parts").glob("*0001*"):
        shutil.copy(file, parts / file.name)
    with pytest.raises(InputError, match=r"0001\.json is a part of another run"):
        RunFolder(folder).tables()


@pytest.mark.parametrize(
    ("table", "column", "value", "match"),
    [
        ("attacks", "norm", "/../../victim", "norm must be one of"),
        ("certificates", "norm", "../x", "norm must be one of"),
        ("certificates", "radius", float("inf"), "radius must be finite"),
        ("certificates", "radius", -1.0, "radius must be finite"),
        ("samples", "label", 10**12, "label must be a class below"),
        ("samples", "label", -1, "label must be a class"),
        ("samples", "prediction", -1, "prediction must be a class"),
        ("attacks", "distance", float("nan"), "distance must be at least 0"),
        ("examples", "height", 10**6, "pixels of"),
    ],
)
def test_impossible_values_are_named(
    table: str, column: str, value: Any, match: str, tmp_path: Path, write_run: Any
) -> None:
    folder = RunFolder(write_run(tmp_path / "run", count=40))
    folder.write_part(table, "0000", folder.part(table, "0000").assign(**{column: value}))
    with pytest.raises(InputError, match=match):
        write_report(folder.path)


def test_the_name_of_a_figure_cannot_be_a_path() -> None:
    with pytest.raises(InputError, match="may only contain letters"):
        Figure("sandwich-/../../victim", "", "", "", {}, [], "")


def test_a_run_of_version_1_still_has_a_report(tmp_path: Path, write_run: Any) -> None:
    """Version 1 had no column for the function, which was part of the certificate's name."""
    path = write_run(tmp_path / "old", count=40, schema_version=1)
    parts = path / "parts"
    for part in ("0000", "0001"):
        file = parts / f"certificates-{part}.parquet"
        pd.read_parquet(file).drop(columns="function").to_parquet(file, index=False)
        record = json.loads((parts / f"{part}.json").read_text())
        record[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        (parts / f"{part}.json").write_text(json.dumps(record))
    assert write_report(path).is_file()
    assert set(RunFolder(path).table("certificates")["function"]) == {"network"}


def test_text_cells_cannot_become_formulas() -> None:
    frame = pd.DataFrame({"=A": ["=cmd|' /C calc'!A0", "+1-1", "@SUM(A1)", "-2", "\tx", "plain"], "n": [-1.5] * 6})
    lines = csv_text(frame).splitlines()
    assert lines[0] == "'=A,n"
    assert [line[0] for line in lines[1:]] == ["'", "'", "'", "-", "'", "p"]
    assert all(line.endswith(",-1.5") for line in lines[1:])


def test_class_names_in_samples_csv_cannot_become_formulas(tmp_path: Path, write_run: Any) -> None:
    names = [f"=HYPERLINK({number})" for number in range(10)]
    path = write_run(tmp_path / "run", count=20, data={"source": "d", "classes": 10, "class_names": names})
    write_report(path)
    assert pd.read_csv(path / "samples.csv")["label_name"].str.startswith("'=").all()


def test_a_read_only_disk_keeps_its_first_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def read_only(path: Path, *arguments: Any, **more: Any) -> Any:
        if "w" in (arguments or [more.get("mode", "r")])[0] or more.get("missing_ok"):
            raise OSError(30, "Read-only file system")
        return real(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", read_only)
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: read_only(path, missing_ok=missing_ok))
    with pytest.raises(StorageError, match=r"cannot write .*Read-only file system"):
        write_report(folder)


def test_a_full_disk_keeps_its_first_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write_report(folder)


def test_a_comparison_is_not_written_over_a_run_or_anything_else(folder: Path, tmp_path: Path, write_run: Any) -> None:
    other = write_run(tmp_path / "other", count=40)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "samples.csv").write_text("my work")
    for out in (tmp_path / "mine", folder):
        (folder / "summary.json").write_text("{}")
        with pytest.raises(InputError, match="would be overwritten"):
            write_comparison({"a": folder, "b": other}, out)
    assert (tmp_path / "mine" / "samples.csv").read_text() == "my work"
    for _ in range(2):
        write_comparison({"a": folder, "b": other}, tmp_path / "both")
