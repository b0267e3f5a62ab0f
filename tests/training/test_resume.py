"""A killed run ends like an uninterrupted one, and a run of several processes like one of a single process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustres.data import ImageSet, load_data
from robustres.errors import InputError
from robustres.models import ResidualNet, residual_net
from robustres.training import Epoch, Recipe, train
from robustres.training.progress_file import FILE

RECIPE = Recipe(loss="emma", epochs=4, batch_size=50, ema=0.9, augmentation="shift", clip_norm=1.0, eps=0.4)


class KilledError(Exception):
    """A stand-in for a kill."""


def sets() -> tuple[ImageSet, ImageSet]:
    return load_data("digits", split="train", limit=200), load_data("digits", split="validation", limit=60)


def network() -> ResidualNet:
    return residual_net(block="linear", depth=1, width=4, image_shape=(1, 8, 8), classes=10, activation="maxmin")


def on_manifold() -> ResidualNet:
    return residual_net(
        block="shift", depth=1, width=16, image_shape=(1, 8, 8), classes=10, activation="half-abs", stem_kernel=2,
        stem_stride=2, dense=(12,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("build", "recipe"),
    [
        (network, RECIPE),
        (on_manifold, replace(RECIPE, optimiser="manifold")),
        (on_manifold, replace(RECIPE, optimiser="manifold", mixed_precision=True, ema=0.0, bias_learning_rate=1e-3)),
    ],
    ids=["nadam", "manifold, averaged", "manifold, bfloat16"],
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, build: Callable[[], ResidualNet], recipe: Recipe
) -> None:
    unbroken, broken, resumed = build(), build(), build()
    history = train(unbroken, *sets(), recipe)

    def kill(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        train(broken, *sets(), recipe, folder=tmp_path, on_epoch=kill)
    again = train(resumed, *sets(), recipe, folder=tmp_path)
    assert again.rows == history.rows
    assert again.best_epoch == history.best_epoch
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in unbroken.state_dict().items())


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, second = network(), network()
    train(first, *sets(), RECIPE, folder=tmp_path)
    seen: list[Epoch] = []
    train(second, *sets(), RECIPE, folder=tmp_path, on_epoch=seen.append)
    assert not seen
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_another_recipe_or_other_data_is_refused_by_name(tmp_path: Path) -> None:
    train_set, validation = sets()
    train(network(), train_set, validation, RECIPE, folder=tmp_path)
    with pytest.raises(InputError, match="differs in recipe"):
        train(network(), train_set, validation, Recipe(loss="emma", epochs=5), folder=tmp_path)
    with pytest.raises(InputError, match="differs in train_set"):
        train(network(), train_set.first(100), validation, RECIPE, folder=tmp_path)
    (tmp_path / FILE).write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot read"):
        train(network(), train_set, validation, RECIPE, folder=tmp_path)


SCRIPT = """
import json, os, sys, torch
from robustres.data import load_data
from robustres.models import residual_net
from robustres.training import Recipe, train
torch.set_num_threads(1)
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
sets = load_data("digits", split="train", limit=100), load_data("digits", split="validation", limit=60)
shared = dict(depth=1, image_shape=(1, 8, 8), classes=10)
shift = dict(width=16, activation="half-abs", stem_kernel=2, stem_stride=2, dense=(12,))
runs = {
    "nadam": (residual_net(block="sll", width=4, **shared), Recipe(loss="emma", epochs=2, batch_size=50)),
    "manifold": (
        residual_net(block="shift", **shift, **shared),
        Recipe(loss="emma", epochs=2, batch_size=50, optimiser="manifold", ema=0.9),
    ),
}
found = {}
for name, (model, recipe) in runs.items():
    history = train(model, *sets, recipe)
    weights = torch.cat([value.double().flatten() for value in model.state_dict().values()])
    found[name] = {"clean": [epoch.clean for epoch in history.epochs], "weights": weights.tolist()}
json.dump(found, open(sys.argv[1] + os.environ.get("RANK", "0"), "w"))
"""


@pytest.mark.slow
def test_two_processes_train_like_one_and_alike(tmp_path: Path) -> None:
    """Gradients are averaged over the processes and every one moves its own copy, on the manifold too."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    single = [sys.executable, str(script), str(tmp_path / "one")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    double = [*launcher, str(script), str(tmp_path / "two")]
    for command in (single, double):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[:6000]
    one, two, other = (json.loads((tmp_path / name).read_text()) for name in ("one0", "two0", "two1"))
    assert two == other
    for name in ("nadam", "manifold"):
        assert two[name]["clean"] == pytest.approx(one[name]["clean"], abs=0.05)
        assert two[name]["weights"] == pytest.approx(one[name]["weights"], rel=1e-2, abs=3e-3)
