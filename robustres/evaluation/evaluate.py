"""Attack and certify a data set, part by part, into a run folder; stop if certificate and attack ever cross."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustres.attacks import make_attack
from robustres.certify import LipschitzReport, lipschitz
from robustres.data import ImageSet
from robustres.errors import InputError, SandwichViolationError
from robustres.evaluation import rows
from robustres.evaluation.forward import clean_logits
from robustres.evaluation.preflight import check_finite, check_output
from robustres.evaluation.provenance import build_manifest
from robustres.evaluation.settings import Settings
from robustres.guard import evaluation_mode
from robustres.models import LoadedModel
from robustres.results import RunFolder, sandwich_violations

# Told the stage, how much of it is done and how much there is in all.
Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """The progress of a caller who wants none."""


@dataclass(frozen=True)
class Run:
    """A finished evaluation: its folder, its summary, and the bound of the network."""

    folder: RunFolder
    summary: dict[str, Any]
    lipschitz: LipschitzReport


def evaluate(
    model: LoadedModel,
    data: ImageSet,
    out: Path | str,
    settings: Settings,
    *,
    name: str | None = None,
    device: torch.device | str = "cpu",
    command: list[str] | None = None,
    progress: Progress = _silent,
) -> Run:
    """Evaluate a classifier on images and write the run folder `out`.

    Every sample gets its prediction, one row for each attack and eps, and a certified radius in every certified norm.
    Nothing is written before the model's answers to all images were checked. A folder that holds an interrupted run
    of the same model, data and settings is continued; of others it is refused, and nothing in it changes.

    Raises: DataError or ModelError where model and data do not fit; SandwichViolationError where an adversarial
    example lies inside a certified radius (its part is written first, so that it can be looked at).
    """
    device = torch.device(device)
    folder = RunFolder(Path(out))
    module = model.module.to(device)
    with evaluation_mode(module):
        check_output(module, data, device=device)
        total = len(data.labels)
        seen = 0

        def count(batch: int) -> None:
            nonlocal seen
            seen += batch
            progress("clean", seen, total)

        logits = clean_logits(module, data.images, batch_size=settings.batch_size, device=device, done=count)
        if not settings.keep_going:
            check_finite(logits)
        attacks = [
            make_attack(attack, threat, seed=settings.seed, **settings.attack_settings.get(attack, {}))
            for attack in settings.attacks
            for threat in settings.threats()
        ]
        progress("bound", 0, 1)
        report = lipschitz(module, tuple(data.images.shape[1:]), joint=settings.joint, refuse="record")
        progress("bound", 1, 1)
        manifest = build_manifest(
            model, data, settings, report, name=name or folder.path.name, device=device, command=command
        )
        _claim(folder, manifest)
        folder.write_manifest(manifest)
        folder.write_part("blocks", "all", report.to_frame())
        for start, stop in _parts(total, settings.part_size):
            part = f"{start:09d}"
            if not folder.has_part("samples", part):
                span = range(start, stop)
                tables = rows.part_tables(module, data, logits, span, attacks, report, settings, device=device)
                # The samples are written last: they say that the part is complete.
                for table in ("attacks", "certificates", "examples", "samples"):
                    folder.write_part(table, part, tables[table])
                _check_sandwich(tables)
            progress("attack and certify", stop, total)
    return Run(folder, folder.write_summary(), report)


def _parts(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        yield start, min(start + size, total)


def _claim(folder: RunFolder, manifest: dict[str, Any]) -> None:
    """Make sure that the folder is empty of other runs."""
    if not (folder.path / "run.json").exists():
        return
    mine, theirs = manifest["identity"], folder.manifest().get("identity", {})
    different = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    if different:
        listed = "; ".join(f"{key}: {theirs.get(key)} there, {mine.get(key)} now" for key in different)
        raise InputError(
            f"{folder.path} holds another run ({listed}); choose another --out, or delete that folder first"
        )


def _check_sandwich(tables: dict[str, Any]) -> None:
    for row in sandwich_violations(tables["attacks"], tables["certificates"]).to_dict(orient="records"):
        raise SandwichViolationError(row["index"], row["certificate"], row["radius"], row["attack"], row["measured"])
