"""Attack and certify a data set, part by part, into a run folder; stop if certificate and attack ever cross."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from robustres.certify import LipschitzReport, lipschitz
from robustres.data import ImageSet
from robustres.errors import InputError, SandwichViolationError
from robustres.evaluation.forward import clean_logits
from robustres.evaluation.lock import locked
from robustres.evaluation.masking import diagnosis_rows
from robustres.evaluation.plan import planned_attacks
from robustres.evaluation.preflight import check_finite, check_output
from robustres.evaluation.provenance import build_manifest
from robustres.evaluation.rows import part_tables
from robustres.evaluation.settings import Settings
from robustres.evaluation.shard import this_shard
from robustres.guard import evaluation_mode
from robustres.models import LoadedModel
from robustres.results import RunFolder, sandwich_violations

# Told the stage, how much of it is done and how much there is in all.
Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """The progress of a caller who wants none."""


@dataclass(frozen=True)
class Run:
    """A finished evaluation: its folder, its summary, and the bound of the network where one was asked for."""

    folder: RunFolder
    summary: dict[str, Any]
    lipschitz: LipschitzReport | None


def evaluate(
    model: LoadedModel,
    data: ImageSet,
    out: Path | str,
    settings: Settings,
    *,
    name: str | None = None,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    command: list[str] | None = None,
    progress: Progress = _silent,
) -> Run:
    """Evaluate a classifier on images and write the run folder `out`.

    Every sample gets its prediction, one row for each attack and eps, and a certified radius in every certified norm.
    Nothing is written before the model's answers to all images were checked. A folder that holds an interrupted run
    of the same model, data and settings is continued and ends as an unbroken one; of others it is refused, and
    nothing in it changes, unless `overwrite` asks to begin again. Under torchrun the processes share the parts; the
    result does not depend on how many.

    Raises: DataError or ModelError where model and data do not fit; InputError where the folder belongs to another
    run or is in use; SandwichViolationError where an adversarial example lies inside a certified radius (its part is
    written first, the example among it, so that it can be looked at).
    """
    device = torch.device(device)
    folder = RunFolder(Path(out))
    module = model.module.to(device)
    with this_shard() as shard, evaluation_mode(module):
        classes = check_output(module, data, device=device)
        attacks = planned_attacks(settings)
        logits = clean_logits(
            module, data.images, batch_size=settings.batch_size, device=device,
            progress=lambda done: progress("clean", done, len(data)),
        )  # fmt: skip
        if not settings.keep_going:
            check_finite(logits)
        report = _bounded(module, data, settings, progress) if settings.certify else None
        with locked(folder.path) if shard.first else nullcontext():
            if shard.first:
                run_name = name or folder.path.name
                manifest = build_manifest(
                    model, data, settings, report, name=run_name, classes=classes, device=device, command=command
                )
                if overwrite:
                    folder.clear()
                _open_run(folder, manifest, report)
            shard.wait()
            mine = shard.own(_parts(len(data), settings.part_size))
            for done, span in enumerate(mine):
                progress("attack and certify", done, len(mine))
                if not folder.has_part("samples", _part_name(span)):
                    tables = part_tables(module, data, logits, span, attacks, report, settings, device=device)
                    _write_part(folder, span, tables)
            progress("attack and certify", len(mine), len(mine))
            if shard.first and settings.diagnose and not folder.has_part("diagnosis", "all"):
                folder.write_part("diagnosis", "all", diagnosis_rows(module, data, settings, device=device))
            shard.wait()
            summary = folder.write_summary() if shard.first else {}
            _stop_at_violation(folder.table("attacks"), folder.table("certificates"))
            shard.wait()
    return Run(folder, summary, report)


def _bounded(module: nn.Module, data: ImageSet, settings: Settings, progress: Progress) -> LipschitzReport:
    progress("bound", 0, 1)
    report = lipschitz(module, data.image_shape, joint=settings.joint, effort=settings.effort, refuse="record")
    progress("bound", 1, 1)
    return report


def _parts(total: int, size: int) -> list[range]:
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def _part_name(span: range) -> str:
    return f"{span.start:09d}"


def _open_run(folder: RunFolder, manifest: dict[str, Any], report: LipschitzReport | None) -> None:
    """Begin a run in an empty folder, or make sure that the one begun there is this one."""
    if (folder.path / "run.json").exists():
        mine, theirs = manifest["identity"], folder.manifest().get("identity", {})
        different = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        if different:
            listed = "; ".join(f"{key}: {theirs.get(key)} there, {mine.get(key)} now" for key in different)
            raise InputError(
                f"{folder.path} holds another run ({listed}); choose another --out, or begin again with --overwrite"
            )
    else:
        folder.write_part("blocks", "all", [] if report is None else report.to_frame())
        folder.write_manifest(manifest)


def _write_part(folder: RunFolder, span: range, tables: dict[str, pd.DataFrame]) -> None:
    """Write the tables of one part, `samples` last: it says that the part is complete."""
    for table in ("attacks", "certificates", "examples", "samples"):
        folder.write_part(table, _part_name(span), tables[table])
    _stop_at_violation(tables["attacks"], tables["certificates"])


def _stop_at_violation(attacks: pd.DataFrame, certificates: pd.DataFrame) -> None:
    for row in sandwich_violations(attacks, certificates).to_dict(orient="records"):
        raise SandwichViolationError(row["index"], row["certificate"], row["radius"], row["attack"], row["measured"])
