"""The small benchmark, the regressions found by its comparison, and the GPU script."""

import copy
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    """Import a script of benchmarks/ as a module."""
    spec = spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def baseline() -> Any:
    """The committed baseline."""
    return json.loads((ROOT / "benchmarks" / "baseline.json").read_text())


def test_a_file_compared_with_itself_is_neither_worse_nor_better() -> None:
    assert script("track").compared(baseline(), baseline()) == ([], [])


@pytest.mark.parametrize(
    ("metric", "factor"), [("bound", 1.01), ("radius", 0.9), ("gradients", 1.2), ("seconds", 3.0), ("estimate", 0.9)]
)
def test_a_regression_is_named_and_its_opposite_is_an_improvement(metric: str, factor: float) -> None:
    old, new = baseline(), copy.deepcopy(baseline())
    name = max(
        (key for key, row in old["results"].items() if metric in row), key=lambda key: old["results"][key][metric]
    )
    new["results"][name][metric] *= factor
    worse, better = script("track").compared(old, new)
    assert len(worse) == 1
    assert worse[0].startswith(f"{name}: {metric}")
    assert not better
    worse, better = script("track").compared(new, old)
    assert len(better) == 1
    assert not worse


def test_noise_in_seconds_and_another_machine_are_no_regression() -> None:
    old, new = baseline(), copy.deepcopy(baseline())
    for row in new["results"].values():
        row["seconds"] *= 1.2
    assert script("track").compared(old, new)[0] == []
    for row in new["results"].values():
        row["seconds"] *= 10
    assert script("track").compared(old, new)[0]
    assert script("track").compared(old, new, seconds=False)[0] == []


def test_a_missing_measurement_and_one_more_robust_sample_are_regressions() -> None:
    old, new = baseline(), copy.deepcopy(baseline())
    gone = next(iter(new["results"]))
    del new["results"][gone]
    attacked = next(name for name, row in new["results"].items() if "robust" in row)
    new["results"][attacked]["robust"] += 1
    worse, _ = script("track").compared(old, new)
    assert [line.partition(": ")[0] for line in worse] == [gone, attacked]


def test_measuring_writes_the_file_and_the_commands_return_their_exit_codes(tmp_path: Path) -> None:
    track, out = script("track"), tmp_path / "deep" / "now.json"
    assert track.main(["measure", "--repeats", "1", "--only", "fgsm", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["results"].values()
    assert row["robust"] <= 60
    known = {name: value for name, value in baseline()["results"].items() if "fgsm" in name}
    (tmp_path / "old.json").write_text(json.dumps({"results": known}))
    assert track.main(["compare", "--no-seconds", str(tmp_path / "old.json"), str(out)]) == 0
    assert track.main(["compare", "--no-seconds", str(ROOT / "benchmarks" / "baseline.json"), str(out)]) == 1


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_at_small_size_on_a_cpu(tmp_path: Path) -> None:
    gpu = script("gpu")
    out = tmp_path / "gpu.json"
    assert gpu.main(["--small", "--minutes", "10", "--device", "cpu", "--out", str(out)]) == 0
    parts = json.loads(out.read_text())["parts"]
    assert set(parts) == {part.__name__ for part in gpu.PARTS}
    assert not any("error" in part for part in parts.values())
    assert parts["agreement"]["largest_difference_of_logits"] == 0
    assert parts["pgd"]["bare loop"]["samples_per_second"] > 0
    assert parts["training"]["samples_per_second"] > 0


def test_a_part_that_fails_is_recorded_and_the_next_one_begins(tmp_path: Path) -> None:
    gpu = script("gpu")

    def broken(job: Any) -> dict[str, Any]:
        raise ValueError("nothing works")

    def fine(job: Any) -> dict[str, Any]:
        return {"samples": len(job.images)}

    gpu.PARTS = (broken, fine)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--small", "--minutes", "10", "--device", "cpu", "--out", str(out)]) == 1
    parts = json.loads(out.read_text())["parts"]
    assert parts["broken"] == {"error": "ValueError: nothing works"}
    assert parts["fine"] == {"samples": 16}
    assert gpu.main(["--small", "--minutes", "0", "--device", "cpu", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["parts"]["fine"] == {"skipped": "the time is over"}
