"""Attack and certify a data set, part by part, into a run folder; stop if certificate and attack ever cross."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustres.certify import LipschitzReport
from robustres.data import ImageSet, load_data
from robustres.errors import InputError
from robustres.evaluation.lock import locked, require_free
from robustres.evaluation.plan import check_countable, planned_attacks, planned_certificates
from robustres.evaluation.preflight import check_output, require_certifiable_type
from robustres.evaluation.provenance import build_manifest, identity
from robustres.evaluation.resume import open_run, part_name, pending, require_same_run
from robustres.evaluation.settings import Settings
from robustres.evaluation.shard import this_shard
from robustres.evaluation.task import Progress, Task, spans_of
from robustres.guard import evaluation_mode
from robustres.models import LoadedModel, load_model
from robustres.results import Requirement, RunFolder, eps_words, require_own_run
from robustres.threat import require_width


def _silent(stage: str, done: int, total: int) -> None:
    """The progress callback that does nothing."""


@dataclass(frozen=True)
class Run:
    """A finished evaluation: its folder, its summary, and the bound on the network if one was requested.

    first: whether this process is the one that reports; the summary is the same in all processes.
    """

    folder: RunFolder
    summary: dict[str, Any]
    lipschitz: LipschitzReport | None
    first: bool = True

    def __repr__(self) -> str:
        """The main results; the tables are separate attributes."""
        clean, total = self.summary["clean"]["correct"], self.summary["data"]["samples"]
        left = [f"{row['robust']} robust at {row['norm']} {eps_words(row['eps'])}" for row in self.summary["robust"]]
        return f"Run({self.folder.path}: {', '.join([f'{clean} of {total} correct', *left])})"

    @property
    def samples(self) -> pd.DataFrame:
        """One row per sample: label, prediction, margin."""
        return self.folder.table("samples")

    @property
    def attacks(self) -> pd.DataFrame:
        """One row per sample, attack, norm and eps: whether the attack succeeded, and at which distance."""
        return self.folder.table("attacks")

    @property
    def certificates(self) -> pd.DataFrame:
        """One row per sample, certificate and norm: the radius within which no perturbation changes the prediction."""
        return self.folder.table("certificates")

    @property
    def blocks(self) -> pd.DataFrame:
        """One row per block of the network: its bounds and the estimate from below."""
        return self.folder.table("blocks")


def evaluate(
    model: LoadedModel | nn.Module | str,
    data: ImageSet | str | tuple[Tensor, Tensor],
    out: Path | str,
    settings: Settings,
    *,
    name: str | None = None,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    cache: bool = True,
    require: Sequence[Requirement | str] = (),
    command: list[str] | None = None,
    progress: Progress = _silent,
) -> Run:
    """Evaluate a classifier on images and write the run folder `out`.

    model, data: as returned by `load_model` and `load_data`, or what these accept: a module or a specification; a
        specification or images (N, C, H, W) in [0, 1] with labels (N,).

    Every sample gets its prediction, one row for each attack and eps, and a certified radius in every certified norm.
    Nothing is written before the model's outputs for all images have been checked. An interrupted run of the same
    model, data and settings is continued, with the same result as an uninterrupted one; a folder with a different run
    is refused and left unchanged, unless `overwrite` is set. Under torchrun the parts are split among the processes;
    the result does not depend on their number. Images are read part by part, the next one while the current one is
    attacked, so the data may be larger than memory. With `cache`, bounds of an unchanged network are reused from the
    run folder and the user's cache, by a digest of the network, the settings and this version of the certifier.

    require: thresholds such as "certified@l2:36/255>=0.5"; the summary says whether the run meets them.

    Raises: DataError or ModelError if model and data do not match; StorageError if a file cannot be written (finished
        parts are kept, and the same call continues from there); InputError if the folder belongs to another run or is
        in use; SandwichViolationError if an adversarial example lies inside a certified radius (its part, with the
        example, is written first, so that it can be examined).
    """
    if not isinstance(settings, Settings):
        raise InputError(f"settings must be a robustres.Settings, got {type(settings).__name__}")
    required = [Requirement.read(entry) if isinstance(entry, str) else entry for entry in require]
    check_countable(required, settings)
    device = torch.device(device)
    data = data if isinstance(data, ImageSet) else load_data(data)
    model = model if isinstance(model, LoadedModel) else load_model(model, input_shape=data.image_shape)
    folder, module = RunFolder(Path(out)), model.module.to(device)
    with this_shard() as shard, evaluation_mode(module):
        task = Task(module, data, settings, folder, shard, device, progress)
        shard.from_first(lambda: require_own_run(folder.path))
        shard.from_first(lambda: require_free(folder.path))
        for threat in settings.threats():
            require_width(threat, math.prod(data.image_shape))
        classes = check_output(module, data, device=device)
        if settings.certify:
            require_certifiable_type(module, settings.dtype)
        attacks = planned_attacks(settings)
        if not overwrite:
            require_same_run(folder, identity(model, data, settings))
            task.require_same_answers()
        logits = task.clean_answers(task.spans() if overwrite else pending(folder, task.spans()))
        report = task.bound(cache=cache)

        def hold_and_open() -> None:
            manifest = build_manifest(
                model, data, settings, report, name=name or folder.path.name, classes=classes, device=device,
                parts=[part_name(span) for span in spans_of(data, settings)], require=required,
                command=command,
            )  # fmt: skip
            held.enter_context(locked(folder.path))
            open_run(folder, manifest, report, overwrite=overwrite)

        with ExitStack() as held:
            shard.from_first(hold_and_open)
            task.finish(logits, attacks, planned_certificates(settings, report))
            task.diagnose()
            summary = task.summarise()
    return Run(folder, summary, report, first=shard.first)


def attack(
    model: LoadedModel | nn.Module | str,
    data: ImageSet | str | tuple[Tensor, Tensor],
    out: Path | str,
    settings: Settings,
    **more: Any,
) -> Run:
    """Only the right side of the sandwich: `evaluate` without certificates, for networks of any kind."""
    return evaluate(model, data, out, replace(settings, certify=False), **more)
