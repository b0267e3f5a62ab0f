"""One process's share of an evaluation, step by step: clean predictions, bounds, parts, diagnosis, summary."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustres.attacks import Attack
from robustres.certify import Certificate, LipschitzReport, lipschitz
from robustres.data import ImageSet, read_ahead
from robustres.errors import InputError, SandwichViolationError
from robustres.evaluation.bound_store import BoundStore, user_cache
from robustres.evaluation.class_order import doubts
from robustres.evaluation.forward import clean_logits, label_margin
from robustres.evaluation.kept_proofs import KeptProofs
from robustres.evaluation.masking import diagnosis_rows
from robustres.evaluation.preflight import not_finite, require_finite, uncovered_arithmetic
from robustres.evaluation.resume import part_name, usable
from robustres.evaluation.rows import Samples, evaluated_part
from robustres.evaluation.settings import Settings
from robustres.evaluation.shard import Shard
from robustres.evaluation.timing import Timing
from robustres.results import DIAGNOSED, RunFolder, sandwich_violations, typed_table

log = logging.getLogger(__name__)

# Number of images at which the estimates from below start.
STARTS = 9
# Number of samples on which a resumed run is compared with its earlier results, and how far rounding on another machine
# may move a margin, relative to the largest.
COMPARED, SAME_MARGIN = 8, 0.02

# Called with the stage, how much of it is done and how much there is in total.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """What is evaluated, how, by which process, into which folder, and the progress callback.

    module: in evaluation mode on `device`.
    """

    module: nn.Module
    data: ImageSet
    settings: Settings
    folder: RunFolder
    shard: Shard
    device: torch.device
    progress: Progress

    def spans(self) -> list[range]:
        """This process's parts of the samples."""
        return self.shard.own(spans_of(self.data, self.settings))

    def require_same_answers(self) -> None:
        """Raise InputError if the model's outputs for the first images of a finished part have changed.

        The digest of a model covers its weights only; this check detects a different architecture with the same
        weights.
        """
        span = next((span for span in self.spans() if usable(self.folder, part_name(span))), None)
        if span is None:
            return
        rows = self.folder.part("samples", part_name(span)).head(COMPARED)
        index = torch.from_numpy(rows["index"].to_numpy(copy=True))
        logits = clean_logits(self.module, self.data.batch(index), batch_size=COMPARED, device=self.device)
        now = label_margin(logits, self.data.labels[index]).to(torch.float64)
        then = torch.from_numpy(rows["margin"].to_numpy(copy=True))
        away = (now - then).abs().nan_to_num(0)
        if bool((away > SAME_MARGIN * then.abs().nan_to_num(0).max().clamp(min=1)).any()):
            worst = int(away.argmax())
            raise InputError(
                f"{self.folder.path} contains a different run (the margin of sample {int(index[worst])} is "
                f"{float(then[worst]):.6g} there, {float(now[worst]):.6g} now, with the same weights: the architecture "
                "differs); choose another --out, or start over with --overwrite"
            )

    def clean_answers(self, spans: Sequence[range]) -> dict[range, Tensor]:
        """Logits of the clean images of each part; raises ModelError if they must be finite and are not, in any
        process.
        """
        logits: dict[range, Tensor] = {}
        for span, images in read_ahead(self._read, spans):
            self.progress("clean", len(logits), len(spans))
            logits[span] = clean_logits(
                self.module, images, batch_size=self.settings.images_at_once(self.data.image_shape), device=self.device
            )  # fmt: skip
        self.progress("clean", len(spans), len(spans))
        self._require_finite(logits)
        self._say_doubts(logits)
        return logits

    def _say_doubts(self, logits: dict[range, Tensor]) -> None:
        """Log a warning if the labels do not seem to match the model's outputs."""
        mine = [
            (self.data.labels[span.start : span.stop], rows.argmax(dim=1), rows.shape[1])
            for span, rows in logits.items()
        ]
        parts = [part for found in self.shard.gather(mine) for part in found]
        if self.shard.first and parts:
            labels, predictions = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
            for doubt in doubts(self.data, labels, predictions, parts[0][2]):
                log.warning(doubt)

    def _require_finite(self, logits: dict[range, Tensor]) -> None:
        """If logits are not finite, stop every process, or log how many samples will count as misclassified."""
        mine = [i for span, rows in logits.items() for i in not_finite(rows, torch.arange(span.start, span.stop))]
        broken = [index for found in self.shard.gather(mine) for index in found]
        if not self.settings.keep_going:
            require_finite(broken, sum(self.shard.gather(sum(map(len, logits)))))
        elif broken and self.shard.first:
            log.warning("the logits of %d samples are not finite, first at sample %d", len(broken), min(broken))

    def bound(self, *, cache: bool) -> LipschitzReport | None:
        """The bound on the network; if bounds are stored, the first process computes it and the others read it."""
        if not self.settings.certify:
            return None
        self.progress("bound", 0, 1)
        if (uncovered := uncovered_arithmetic(self.module)) is not None:
            return LipschitzReport(self.data.image_shape, "l2", (), math.inf, 0.0, (uncovered,))
        store = BoundStore((self.folder.path / "bounds", user_cache())) if cache else None
        if store is not None and not self.shard.first:
            self.shard.wait()
        report = lipschitz(
            self.module, self.data.image_shape, joint=self.settings.joint, effort=self.settings.effort,
            whole_effort=self.settings.whole_effort, domain=self.settings.domain,
            refuse="record", store=store, images=self.data.spaced(STARTS), progress=partial(self.progress, "blocks"),
        )  # fmt: skip
        if store is not None and self.shard.first:
            self.shard.wait()
        self.progress("bound", 1, 1)
        return report

    def finish(
        self, logits: dict[range, Tensor], attacks: Sequence[Attack], certificates: Sequence[Certificate]
    ) -> None:
        """Attack, certify and write every part whose clean logits are given, and release them on the way.

        Raises SandwichViolationError after a part with a violation was written.
        """
        total = len(self.spans())
        for span, images in read_ahead(self._read, list(logits)):
            self.progress("attack and certify", total - len(logits), total)
            index = torch.arange(span.start, span.stop)
            samples = Samples(index, images, self.data.labels[index], logits[span])
            timing = Timing(span.start, len(span))
            steps = self._counted(span, sum(map(len, logits)), len(attacks) + 1)
            kept = self._kept_proofs(span, sum(map(len, logits)), certificates)
            part = evaluated_part(
                self.module, samples, attacks, kept.listening(certificates), self.settings, device=self.device,
                timing=timing, step=partial(next, steps),
            )  # fmt: skip
            if self.settings.keep_certificates:
                part.tables["proofs"] = typed_table("proofs", list(kept.rows.values()))
            self.folder.write_timings(part_name(span), timing.rows)
            self.folder.finish_part(part_name(span), part.tables)
            for violations in part.violations:
                _stop_at(violations)
            del logits[span]
        self.progress("attack and certify", total, total)

    def _counted(self, span: range, left: int, steps: int) -> Iterator[None]:
        """Report how many samples are done after each step of a part."""
        total = sum(map(len, self.spans()))
        for step in range(1, steps + 1):
            self.progress("samples", total - left + len(span) * step // steps, total)
            yield

    def _kept_proofs(self, span: range, left: int, certificates: Sequence[Certificate]) -> KeptProofs:
        """Where the local certificates of a part go; each image is told to the progress, once for every norm."""
        norms = sum(hasattr(one, "telling") for one in certificates)
        total = sum(map(len, self.spans()))

        def step(done: int) -> None:
            self.progress("local certificates", (total - left) * norms + done, total * norms)

        return KeptProofs(self.folder if self.settings.keep_certificates else None, step)

    def diagnose(self) -> None:
        """Write the diagnosis of PGD's gradients, if it was requested and is not done yet."""
        if self.shard.first and self.settings.diagnose and not usable(self.folder, DIAGNOSED):
            rows = diagnosis_rows(self.module, self.data, self.settings, device=self.device)
            self.folder.finish_part(DIAGNOSED, {"diagnosis": typed_table("diagnosis", rows)})

    def summarise(self) -> dict[str, Any]:
        """The summary, written by the first process when all are done.

        Raises SandwichViolationError if any part, including those of an earlier attempt, contains a violation.
        """
        self.shard.wait()
        summary = self.shard.from_first(self._sealed_summary)
        if summary["sandwich"]["violations"]:
            _stop_at(sandwich_violations(self.folder.table("attacks"), self.folder.table("certificates")))
        self.shard.wait()
        return summary

    def _sealed_summary(self) -> dict[str, Any]:
        self.folder.seal()
        return self.folder.write_summary()

    def _read(self, span: range) -> Tensor:
        """The images of a part, in pinned memory if a GPU is used."""
        images = self.data.batch(torch.arange(span.start, span.stop))
        return images.pin_memory() if self.device.type == "cuda" else images


def spans_of(data: ImageSet, settings: Settings) -> list[range]:
    """The samples of every part of a run."""
    total, size = len(data), settings.samples_per_part(data.image_shape)
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def _stop_at(violations: pd.DataFrame) -> None:
    for row in violations.to_dict(orient="records"):
        raise SandwichViolationError(row["index"], row["certificate"], row["radius"], row["attack"], row["measured"])
