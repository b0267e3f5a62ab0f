"""An interrupted evaluation continues and gives the same results as an uninterrupted one; a defect stops it."""

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from robustres.certify import Certificates, RandomisedSmoothing, certify
from robustres.data import ImageSet, load_data
from robustres.errors import InputError, SandwichViolationError
from robustres.evaluation import Settings, evaluate
from robustres.evaluation.lock import locked, require_free
from robustres.evaluation.provenance import identity
from robustres.models import LoadedModel, load_model
from robustres.results import RunFolder

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(
    eps={"linf": (4 / 255,), "l2": (0.25,)},
    attacks=("fgsm", "pgd"),
    part_size=16,
    attack_settings={"pgd": {"steps": 3}},
)
FACTORY = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Conv2d(3, 3, 3, padding=1)
    def forward(self, x):
        return x + torch.relu(self.branch(x))

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), Block(), nn.Flatten(), nn.Linear(192, 10))
"""
SCRIPT = """
import json, os, random, signal, sys, time
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from robustres.data import load_data
from robustres.evaluation import Settings, evaluate
from robustres.models import load_model
eps, steps = {"linf": (4 / 255,), "l2": (0.25,)}, {"pgd": {"steps": 3}}
settings = Settings(eps=eps, attacks=("fgsm", "pgd"), part_size=16, attack_settings=steps)
data, model = load_data("digits", limit=64), load_model("resume_net:net")
"""
# One run; the process named by VICTIM is killed when it has finished a part.
ONCE = """
def progress(stage, done, total):
    if stage == "attack and certify" and done == 1 and os.environ.get("VICTIM") == os.environ.get("RANK"):
        os.kill(os.getpid(), signal.SIGKILL)
evaluate(model, data, sys.argv[1] + "/many", settings, progress=progress)
"""
# Runs in children of this process, which has imported everything and computed the bounds, killed at random times.
KILLS = """
def attempt(folder):
    child = os.fork()
    if child == 0:
        try:
            evaluate(model, data, folder, settings)
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    return child

root, moments = sys.argv[1], random.Random(0)
for name in ("first", "whole"):  # the first one leaves the bounds in the cache
    begun = time.monotonic()
    assert os.waitpid(attempt(root + "/" + name), 0)[1] == 0
    length = time.monotonic() - begun
runs, kills, with_parts = ["0"], 0, 0
while kills < 50:
    folder = root + "/" + runs[-1]
    child, moment = attempt(folder), time.monotonic() + moments.uniform(0, length)
    ended = 0
    while not ended and time.monotonic() < moment:
        time.sleep(0.002)
        ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        assert status == 0
        runs.append(str(len(runs)))
        continue
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    parts = folder + "/parts"
    with_parts += os.path.isdir(parts) and any(name.startswith("samples") for name in os.listdir(parts))
assert os.waitpid(attempt(root + "/" + runs[-1]), 0)[1] == 0
json.dump({"runs": runs, "kills": kills, "kills_with_parts_written": with_parts}, sys.stdout)
"""
HOLDER = """
import time
from pathlib import Path
from robustres.evaluation.lock import locked
with locked(Path({folder!r})):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    (tmp_path / "resume_net.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("resume_net", None)
    return load_model("resume_net:net")


@pytest.fixture
def data() -> ImageSet:
    return load_data("digits", limit=64)


def digests(folder: Path) -> dict[str, str]:
    """Contents of every table of a run and of its summary."""
    files = [*(folder / "parts").iterdir(), folder / "summary.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def break_off(model: LoadedModel, data: ImageSet, folder: Path) -> None:
    """A run that is interrupted after two parts."""

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "attack and certify" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, folder, SETTINGS, progress=stop)


def test_a_run_interrupted_between_parts_gives_the_results_of_an_uninterrupted_one(
    model: LoadedModel, data: ImageSet, tmp_path: Path
) -> None:
    evaluate(model, data, tmp_path / "whole", SETTINGS)
    break_off(model, data, tmp_path / "broken")
    assert not (tmp_path / "broken" / "summary.json").exists()
    evaluate(model, data, tmp_path / "broken", SETTINGS)
    assert digests(tmp_path / "broken") == digests(tmp_path / "whole")


def test_a_clock_that_was_set_back_changes_nothing(
    model: LoadedModel, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files written earlier then lie in the future of the continuing process."""
    evaluate(model, data, tmp_path / "whole", SETTINGS)
    break_off(model, data, tmp_path / "broken")
    written = [file for file in (tmp_path / "broken").rglob("*") if file.is_file()]
    future = time.time() + 10 * 365 * 86_400
    for file in written:
        os.utime(file, (future, future))
    kept = {file: file.stat().st_mtime_ns for file in written if file.parent.name == "parts"}
    monkeypatch.setattr(time, "time", lambda: 0.0)
    evaluate(model, data, tmp_path / "broken", SETTINGS)
    assert digests(tmp_path / "broken") == digests(tmp_path / "whole")
    assert len(kept) >= 10
    assert {file: file.stat().st_mtime_ns for file in kept} == kept  # no finished part was recomputed


def test_the_batch_size_changes_no_verdict(model: LoadedModel, data: ImageSet, tmp_path: Path) -> None:
    tables = [
        evaluate(model, data, tmp_path / str(size), replace(SETTINGS, batch_size=size)).folder.table("attacks")
        for size in (5, 64)
    ]
    assert tables[0]["fooled"].equals(tables[1]["fooled"])


def test_changed_data_are_refused_and_named(model: LoadedModel, data: ImageSet, tmp_path: Path) -> None:
    evaluate(model, data, tmp_path / "run", SETTINGS)
    with pytest.raises(InputError, match="data"):
        evaluate(model, data.first(32), tmp_path / "run", SETTINGS)


def test_another_architecture_around_the_same_weights_is_refused(
    model: LoadedModel, data: ImageSet, tmp_path: Path
) -> None:
    evaluate(model, data, tmp_path / "run", SETTINGS)
    changed = load_model(nn.Sequential(*model.module.children(), nn.Softplus()), input_shape=data.image_shape)
    assert changed.sha256 == model.sha256
    with pytest.raises(InputError, match=r"different run \(the margin of sample .* architecture"):
        evaluate(changed, data, tmp_path / "run", SETTINGS)
    evaluate(changed, data, tmp_path / "run", SETTINGS, overwrite=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eps", {"l2": (0.25,)}),
        ("attacks", ("pgd",)),
        ("certify", False),
        ("certificate", "best"),
        ("dtype", "float32"),
        ("attack_settings", {"pgd": {"steps": 4}}),
        ("smoothing", RandomisedSmoothing(0.5, selection_samples=10, estimation_samples=100)),
        ("part_size", 8),
        ("seed", 1),
        ("joint", False),
        ("effort", 0.5),
        ("keep_going", True),
        ("diagnose", 2),
        ("examples", 3),
        ("save_examples", True),
    ],
)
def test_every_setting_that_affects_a_number_is_part_of_the_identity_of_a_run(
    name: str, value: Any, model: LoadedModel, data: ImageSet
) -> None:
    changed = replace(SETTINGS, **{name: value})
    known, other = (identity(model, data, settings) for settings in (SETTINGS, changed))
    assert {key for key in known if known[key] != other[key]} == {name}


def test_no_setting_is_missing_from_the_identity_of_a_run(model: LoadedModel, data: ImageSet) -> None:
    decisive = {entry.name for entry in fields(Settings)} - {"batch_size"}
    assert decisive <= identity(model, data, SETTINGS).keys()
    assert {entry.name for entry in fields(Settings)} <= SETTINGS.to_json().keys()


def test_a_folder_in_use_is_refused_and_the_lock_of_a_dead_process_is_ignored(tmp_path: Path) -> None:
    code = HOLDER.format(folder=str(tmp_path))
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=str(holder.pid)), locked(tmp_path):
        pytest.fail("two processes hold the same folder")
    with pytest.raises(InputError, match="is in use"):
        require_free(tmp_path)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(tmp_path):
        assert (tmp_path / ".lock-owner").read_text() == str(os.getpid())


def test_an_example_inside_a_radius_stops_the_run_and_is_saved(
    model: LoadedModel, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Certificates:
        """A deliberately wrong certificate: every radius is far too large."""
        return replace(certify(*args, **kwargs), radius=torch.full((16,), 5.0, dtype=torch.float64))

    settings = replace(SETTINGS, eps={"l2": (1.0,)}, examples=0)
    with monkeypatch.context() as patch:
        patch.setattr("robustres.certify.radii.network_certificate.certify", broken)
        with pytest.raises(SandwichViolationError, match="certificate is defective") as stop:
            evaluate(model, data, tmp_path / "run", settings)
    kept = RunFolder(tmp_path / "run").table("examples")
    assert stop.value.index in set(kept["index"])
    assert [file.name for file in (tmp_path / "run" / "parts").glob("0*.json")] == ["000000000.json"]  # at once
    with pytest.raises(SandwichViolationError):  # continuing with a correct certificate does not hide it
        evaluate(model, data, tmp_path / "run", settings)


@pytest.mark.slow
def test_a_run_killed_at_fifty_random_points_gives_the_results_of_an_uninterrupted_one(
    model: LoadedModel, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + KILLS, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == 50
    assert found["kills_with_parts_written"] >= 10
    whole = digests(tmp_path / "whole")
    assert {name: digests(tmp_path / name) == whole for name in found["runs"]} == dict.fromkeys(found["runs"], True)


def torchrun(processes: int, script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*launcher, str(script), *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def one(model: LoadedModel, data: ImageSet, tmp_path: Path) -> dict[str, str]:
    """The tables of a run with a single process."""
    evaluate(model, data, tmp_path / "one", SETTINGS)
    return digests(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_changes_nothing(processes: int, one: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sharded.py").write_text(SCRIPT + ONCE)
    done = torchrun(processes, tmp_path / "sharded.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "many") == one


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_worker_killed_under_torchrun_fails_the_run_and_the_same_command_finishes_it(
    victim: str, one: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "sharded.py").write_text(SCRIPT + ONCE)
    killed = torchrun(2, tmp_path / "sharded.py", str(tmp_path), VICTIM=victim)
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr
    assert not (tmp_path / "many" / "summary.json").exists()
    assert list((tmp_path / "many" / "parts").glob("samples-*.parquet"))
    done = torchrun(2, tmp_path / "sharded.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "many") == one


def test_a_smoothed_classifier_has_separate_rows_and_is_excluded_from_the_sandwich(
    model: LoadedModel, data: ImageSet, tmp_path: Path
) -> None:
    smoothing = RandomisedSmoothing(0.5, selection_samples=10, estimation_samples=100)
    run = evaluate(model, data.first(8), tmp_path / "run", replace(SETTINGS, smoothing=smoothing))
    rows = run.folder.table("certificates").groupby("certificate")
    assert {name: set(group["guarantee"]) for name, group in rows} == {
        "lipschitz": {"deterministic"},
        smoothing.name: {"probability 1 - 0.001"},
    }
    counted = [row for row in run.summary["certificates"] if row["certificate"] == smoothing.name]
    assert [row["norm"] for row in counted] == ["l2"]


def test_a_minimum_norm_attack_runs_once_and_serves_every_eps(
    model: LoadedModel, data: ImageSet, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, eps={"l2": (0.25, 0.5)}, attacks=("fmn",), attack_settings={})
    run = evaluate(model, data.first(16), tmp_path / "run", settings)
    rows = run.folder.table("attacks")
    assert len(rows) == 16
    assert [row["eps"] for row in run.summary["attacks"]] == [0.25, 0.5]
    assert rows["eps"].isna().all()
    assert rows.loc[rows["fooled"], "distance"].between(0, 8).all()


def test_masked_gradients_are_diagnosed_on_request(model: LoadedModel, data: ImageSet, tmp_path: Path) -> None:
    settings = replace(SETTINGS, eps={"linf": (0.05,)}, attacks=("pgd",), diagnose=8)
    rows = evaluate(model, data.first(8), tmp_path / "run", settings).folder.table("diagnosis")
    assert len(rows) >= 5
    assert set(rows["norm"]) == {"linf"}
    assert rows["verdict"].str.len().gt(10).all()


def test_tables_are_returned_as_data_frames(model: LoadedModel, data: ImageSet, tmp_path: Path) -> None:
    run = evaluate(model, data, tmp_path / "run", SETTINGS)
    certificates = run.folder.table("certificates")
    assert isinstance(certificates, pd.DataFrame)
    assert len(certificates) == 2 * len(data)
    assert (certificates["radius"] >= 0).all()
    attacks = run.attacks
    missed = attacks.loc[~attacks["fooled"], ["distance", "l2", "linf"]].to_numpy()
    assert len(missed)
    assert (missed == np.inf).all()
