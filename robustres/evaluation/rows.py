"""The table rows of one part of the samples: answers, attacks, certificates, and examples for the gallery."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustres.attacks import Attack, AttackResult
from robustres.certify import Certificates, LipschitzReport, RadiusColumn, certify
from robustres.evaluation.batches import in_batches
from robustres.evaluation.forward import label_margin
from robustres.evaluation.settings import Settings
from robustres.evaluation.timing import Timing
from robustres.numerics import distance
from robustres.results import Sandwich, typed_table

CertifiedNorm = Literal["l2", "linf"]
NORMS_MEASURED: tuple[CertifiedNorm, ...] = ("l2", "linf")
MEASURED_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Part:
    """Every per-sample table of consecutive samples, and what violates the sandwich among them."""

    tables: dict[str, pd.DataFrame]
    violations: list[pd.DataFrame]


@dataclass(frozen=True, eq=False)
class Samples:
    """Consecutive samples of a data set: index (N,), images (N, C, H, W), labels (N,), clean logits (N, classes)."""

    index: Tensor
    images: Tensor
    labels: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.index)


def evaluated_part(
    model: nn.Module,
    samples: Samples,
    attacks: Sequence[Attack],
    report: LipschitzReport | None,
    settings: Settings,
    *,
    device: torch.device,
    timing: Timing,
) -> Part:
    """Rows of every per-sample table for these samples; the examples of one attack at a time are in memory."""
    rows, at_once = _sample_rows(samples), settings.images_at_once(samples.images.shape[1:])
    certified = _certificate_rows(model, samples, rows, report, settings, at_once, device=device, timing=timing)
    sandwich = Sandwich(certified)
    attacked, examples, violations = [], [], []
    for attack in attacks:
        with timing.of("attack", attack.name, attack.threat.norm, _bounded_eps(attack)):
            result = _attack(model, attack, samples, at_once, device)
        found = typed_table("attacks", _attack_rows(attack, samples, result))
        violations.append(sandwich.violations(found))
        shown = {*range(settings.examples), *violations[-1]["index"]}
        examples += _example_rows(attack, samples, result, shown=shown)
        attacked.append(found)
    tables = {
        "attacks": typed_table("attacks", _stacked(attacked)),
        "certificates": certified,
        "examples": typed_table("examples", examples),
        "samples": rows,
    }
    return Part(tables, violations)


def _stacked(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _sample_rows(samples: Samples) -> pd.DataFrame:
    logits, labels = samples.logits, samples.labels
    prediction = logits.argmax(dim=1)
    finite = torch.isfinite(logits).all(dim=1)
    return pd.DataFrame(
        {
            "index": samples.index.numpy(),
            "label": labels.numpy(),
            "prediction": prediction.numpy(),
            "correct": ((prediction == labels) & finite).numpy(),
            "margin": label_margin(logits, labels).to(torch.float64).numpy(),
            "finite": finite.numpy(),
        }
    )


def _attack(model: nn.Module, attack: Attack, samples: Samples, batch_size: int, device: torch.device) -> AttackResult:
    """The attack's result for all samples, computed batch by batch and gathered on the CPU."""
    attack = replace(attack, batch_size=batch_size)

    def work(batch: slice) -> AttackResult:
        known = (samples.images, samples.labels, samples.logits)
        images, labels, logits = (part[batch].to(device, non_blocking=True) for part in known)
        return attack(model, images, labels, indices=samples.index[batch], clean=logits).to("cpu")

    return AttackResult.concatenate(in_batches(work, len(samples), batch_size=batch_size))


def _attack_rows(attack: Attack, samples: Samples, result: AttackResult) -> pd.DataFrame:
    columns: dict[str, Any] = {"index": samples.index.numpy(), "attack": attack.name, "norm": attack.threat.norm}
    columns["eps"] = _bounded_eps(attack)
    columns["fooled"] = result.fooled.numpy()
    columns["distance"] = result.distance.numpy()
    for norm in NORMS_MEASURED:
        own = norm == attack.threat.norm
        columns[norm] = (result.distance if own else _distances(result, samples.images, norm)).numpy()
    columns["adversarial_prediction"] = result.prediction.numpy()
    columns["loss"] = result.loss.to(torch.float64).numpy()
    columns["verified"] = result.verified.numpy()
    columns["steps"] = result.steps.numpy()
    columns["gradient_evaluations"] = result.gradient_evaluations.numpy()
    return pd.DataFrame(columns)


def _distances(result: AttackResult, images: Tensor, norm: CertifiedNorm) -> Tensor:
    """How far every example lies from its image (N,) in float64, infinite where there is none; a few at a time."""
    measured = torch.full_like(result.distance, torch.inf)
    for part in torch.split(result.fooled.nonzero().flatten(), MEASURED_AT_ONCE):
        difference = result.examples[part].to(torch.float64) - images[part].to(torch.float64)
        measured[part] = distance(difference, norm)
    return measured


def _bounded_eps(attack: Attack) -> float:
    """The eps of the attack's rows; NaN for a minimum-norm attack, which has none."""
    return attack.threat.eps if math.isfinite(attack.threat.eps) else math.nan


def _certificate_rows(
    model: nn.Module,
    samples: Samples,
    rows: pd.DataFrame,
    report: LipschitzReport | None,
    settings: Settings,
    at_once: int,
    *,
    device: torch.device,
    timing: Timing,
) -> pd.DataFrame:
    """One row per sample, certificate and norm; none of the network where it was refused."""
    tables: list[pd.DataFrame] = []
    if settings.smoothing is not None:
        smoothing = settings.smoothing

        def smoothed(batch: slice) -> pd.DataFrame:
            column = smoothing(model, samples.images[batch].to(device), indices=samples.index[batch])
            return _smoothed_rows(column, smoothing.name, samples.index[batch])

        with timing.of("certificate", smoothing.name, "l2"):
            tables += in_batches(smoothed, len(samples), batch_size=at_once)
    for norm in settings.certified_norms() if report is not None and not report.refused else ():

        def bounded(batch: slice, norm: CertifiedNorm = norm) -> pd.DataFrame:
            images, index = samples.images[batch].to(device), samples.index[batch]
            found = certify(
                model, images, norm=norm, certificate=settings.certificate, report=report,
                dtype=getattr(torch, settings.dtype), batch_size=at_once,
            )  # fmt: skip
            return _network_rows(found, settings.certificate, index, rows[batch])

        with timing.of("certificate", settings.certificate, norm):
            tables += in_batches(bounded, len(samples), batch_size=at_once)
    return typed_table("certificates", _stacked(tables))


def _network_rows(found: Certificates, name: str, index: Tensor, rows: pd.DataFrame) -> pd.DataFrame:
    """The certificate is of the float64 network: where that answers otherwise than the network as it runs, or where
    an answer is not finite, the radius is 0.
    """
    prediction = found.prediction.cpu().numpy()
    same = (prediction == rows["prediction"].to_numpy()) & rows["finite"].to_numpy()
    return pd.DataFrame(
        {
            "index": index.numpy(),
            "certificate": name,
            "norm": found.norm,
            "radius": np.where(same, found.radius.cpu().numpy(), 0.0),
            "prediction": prediction,
            "source": list(found.source),
            "guarantee": str(found.guarantee),
        }
    )


def _smoothed_rows(column: RadiusColumn, name: str, index: Tensor) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "index": index.numpy(),
            "certificate": name,
            "norm": column.norm,
            "radius": column.radius.numpy(),
            "prediction": column.prediction.numpy(),
            "source": list(column.source),
            "guarantee": str(column.guarantee),
        }
    )


def _example_rows(attack: Attack, samples: Samples, result: AttackResult, *, shown: set[int]) -> list[dict[str, Any]]:
    """The adversarial examples that the attack found for the samples in `shown`."""
    found = (result.fooled & (result.distance > 0)).tolist()
    wanted = [i for i, sample in enumerate(samples.index.tolist()) if found[i] and sample in shown]
    channels, height, width = samples.images.shape[1:]
    return [
        {
            "index": int(samples.index[i]),
            "attack": attack.name,
            "norm": attack.threat.norm,
            "eps": _bounded_eps(attack),
            "channels": channels,
            "height": height,
            "width": width,
            "clean": samples.images[i].numpy().tobytes(),
            "adversarial": result.examples[i].to(torch.float32).numpy().tobytes(),
        }
        for i in wanted
    ]
