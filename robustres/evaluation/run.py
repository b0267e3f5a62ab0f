"""Attack and certify a data set, part by part, into a run folder; stop if certificate and attack ever cross."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustres.certify import LipschitzReport, lipschitz
from robustres.data import ImageSet, load_data, read_ahead
from robustres.errors import SandwichViolationError
from robustres.evaluation.bound_store import BoundStore, user_cache
from robustres.evaluation.forward import clean_logits
from robustres.evaluation.lock import locked
from robustres.evaluation.masking import diagnosis_rows
from robustres.evaluation.plan import planned_attacks
from robustres.evaluation.preflight import check_output, not_finite, require_finite
from robustres.evaluation.provenance import build_manifest, identity
from robustres.evaluation.resume import open_run, part_name, pending, require_same_run, usable
from robustres.evaluation.rows import Samples, part_tables
from robustres.evaluation.settings import Settings
from robustres.evaluation.shard import Shard, this_shard
from robustres.evaluation.timing import Timing
from robustres.guard import evaluation_mode
from robustres.models import LoadedModel, load_model
from robustres.results import RunFolder, sandwich_violations, typed_table

log = logging.getLogger(__name__)

# Images that the estimates from below start at.
STARTS = 9
# The part that holds what was found about masked gradients.
DIAGNOSED = "diagnosed"

# Told the stage, how much of it is done and how much there is in all.
Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """The progress of a caller who wants none."""


@dataclass(frozen=True)
class Run:
    """A finished evaluation: its folder, its summary, and the bound of the network where one was asked for.

    first: whether this process is the one of several that reports; the summary is the same in all of them.
    """

    folder: RunFolder
    summary: dict[str, Any]
    lipschitz: LipschitzReport | None
    first: bool = True

    @property
    def samples(self) -> pd.DataFrame:
        """One row per sample: label, prediction, margin."""
        return self.folder.table("samples")

    @property
    def attacks(self) -> pd.DataFrame:
        """One row per sample, attack, norm and eps: whether it was fooled, and at which distance."""
        return self.folder.table("attacks")

    @property
    def certificates(self) -> pd.DataFrame:
        """One row per sample, certificate and norm: the radius inside which nothing changes the answer."""
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
    command: list[str] | None = None,
    progress: Progress = _silent,
) -> Run:
    """Evaluate a classifier on images and write the run folder `out`.

    model, data: as `load_model` and `load_data` give them, or what these take: a module or a source by its words; a
        source by its words or images (N, C, H, W) in [0, 1] with labels (N,).

    Every sample gets its prediction, one row for each attack and eps, and a certified radius in every certified norm.
    Nothing is written before the model's answers to all images were checked. A folder that holds an interrupted run
    of the same model, data and settings is continued and ends as an unbroken one; of others it is refused, and
    nothing in it changes, unless `overwrite` asks to begin again. Under torchrun the processes share the parts; the
    result does not depend on how many. Images are read part by part, the next while this one is attacked, so the data
    may be larger than the memory. With `cache`, bounds of an unchanged network are found again in the run folder and
    in the user's cache, by a digest of the network, the settings and this version of the certifier.

    Raises: DataError or ModelError where model and data do not fit; StorageError where a file cannot be written (what
    is finished stays, and the same call goes on from there); InputError where the folder belongs to another run or is
    in use; SandwichViolationError where an adversarial example lies inside a certified radius (its part is
    written first, the example among it, so that it can be looked at).
    """
    device = torch.device(device)
    data = data if isinstance(data, ImageSet) else load_data(data)
    model = model if isinstance(model, LoadedModel) else load_model(model, input_shape=data.image_shape)
    folder = RunFolder(Path(out))
    module = model.module.to(device)
    known = identity(model, data, settings)
    with this_shard() as shard, evaluation_mode(module):
        classes = check_output(module, data, device=device)
        attacks = planned_attacks(settings)
        if not overwrite:
            require_same_run(folder, known)
        mine = shard.own(_spans(len(data), settings.part_size))
        left = mine if overwrite else pending(folder, mine)
        logits = _clean_logits(module, data, left, settings, device, progress)
        _require_finite(logits, shard, settings)
        store = BoundStore((folder.path / "bounds", user_cache())) if cache else None
        report = _bounded(module, data, settings, shard, store, progress) if settings.certify else None
        with locked(folder.path) if shard.first else nullcontext():
            if shard.first:
                run_name = name or folder.path.name
                manifest = build_manifest(
                    model, data, settings, report, name=run_name, classes=classes, device=device, command=command
                )
                open_run(folder, manifest, report, overwrite=overwrite)
            shard.wait()
            done = len(mine) - len(left)
            for span, images in read_ahead(_reader(data, device), left):
                progress("attack and certify", done, len(mine))
                index = torch.arange(span.start, span.stop)
                samples = Samples(index, images, data.labels[index], logits.pop(span))
                timing = Timing(span.start, len(span))
                tables = part_tables(module, samples, attacks, report, settings, device=device, timing=timing)
                folder.write_timings(part_name(span), timing.rows)
                folder.finish_part(part_name(span), tables)
                _stop_at_violation(tables["attacks"], tables["certificates"])
                done += 1
            progress("attack and certify", len(mine), len(mine))
            if shard.first and settings.diagnose and not usable(folder, DIAGNOSED):
                rows = typed_table("diagnosis", diagnosis_rows(module, data, settings, device=device))
                folder.finish_part(DIAGNOSED, {"diagnosis": rows})
            shard.wait()
            summary = shard.from_first(folder.write_summary)
            _stop_at_violation(folder.table("attacks"), folder.table("certificates"))
            shard.wait()
    return Run(folder, summary, report, first=shard.first)


def attack(
    model: LoadedModel | nn.Module | str,
    data: ImageSet | str | tuple[Tensor, Tensor],
    out: Path | str,
    settings: Settings,
    **more: Any,
) -> Run:
    """The right side of the sandwich alone: `evaluate` without certificates, for networks of any kind."""
    return evaluate(model, data, out, replace(settings, certify=False), **more)


def _spans(total: int, size: int) -> list[range]:
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def _reader(data: ImageSet, device: torch.device) -> Callable[[range], Tensor]:
    """Reads the images of a part, into memory from which a GPU can fetch them by itself where there is one."""

    def read(span: range) -> Tensor:
        images = data.batch(torch.arange(span.start, span.stop))
        return images.pin_memory() if device.type == "cuda" else images

    return read


def _clean_logits(
    module: nn.Module,
    data: ImageSet,
    spans: list[range],
    settings: Settings,
    device: torch.device,
    progress: Progress,
) -> dict[range, Tensor]:
    """The model's answers to the clean images of each part."""
    logits: dict[range, Tensor] = {}
    for span, images in read_ahead(_reader(data, device), spans):
        progress("clean", len(logits), len(spans))
        logits[span] = clean_logits(module, images, batch_size=settings.batch_size, device=device)
    progress("clean", len(spans), len(spans))
    return logits


def _require_finite(logits: dict[range, Tensor], shard: Shard, settings: Settings) -> None:
    """Stop every process, or say in the log how many samples will count as wrong, where logits are not finite."""
    mine = [i for span, rows in logits.items() for i in not_finite(rows, torch.arange(span.start, span.stop))]
    broken = [index for found in shard.gather(mine) for index in found]
    if settings.keep_going and broken and shard.first:
        log.warning("the logits of %d samples are not finite, first at sample %d", len(broken), min(broken))
    if not settings.keep_going:
        require_finite(broken, sum(shard.gather(sum(map(len, logits)))))


def _bounded(
    module: nn.Module,
    data: ImageSet,
    settings: Settings,
    shard: Shard,
    store: BoundStore | None,
    progress: Progress,
) -> LipschitzReport:
    """The bound of the network; where bounds are stored the first process computes it and the others find it."""
    progress("bound", 0, 1)
    if store is not None and not shard.first:
        shard.wait()
    report = lipschitz(
        module, data.image_shape, joint=settings.joint, effort=settings.effort, refuse="record", store=store,
        images=data.spaced(STARTS),
    )  # fmt: skip
    if store is not None and shard.first:
        shard.wait()
    progress("bound", 1, 1)
    return report


def _stop_at_violation(attacks: pd.DataFrame, certificates: pd.DataFrame) -> None:
    for row in sandwich_violations(attacks, certificates).to_dict(orient="records"):
        raise SandwichViolationError(row["index"], row["certificate"], row["radius"], row["attack"], row["measured"])
