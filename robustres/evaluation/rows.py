"""The table rows of one part of the samples: answers, attacks, certificates, and examples for the gallery."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustres.attacks import Attack, AttackResult
from robustres.certify import LipschitzReport, RadiusColumn, certify
from robustres.data import ImageSet
from robustres.evaluation.batches import in_batches
from robustres.evaluation.forward import label_margin
from robustres.evaluation.settings import Settings
from robustres.numerics import distance
from robustres.results import sandwich_violations, typed_table


def part_tables(
    model: nn.Module,
    data: ImageSet,
    logits: Tensor,
    span: range,
    attacks: Sequence[Attack],
    report: LipschitzReport | None,
    settings: Settings,
    *,
    device: torch.device,
) -> dict[str, pd.DataFrame]:
    """Rows of every per-sample table for the samples in `span`; `logits` are those of all samples."""
    index = torch.arange(span.start, span.stop)
    images, labels, answers = data.images[index], data.labels[index], logits[index]
    samples = _sample_rows(index, labels, answers)
    results = [
        (attack, _attack(model, attack, images, labels, index, settings.batch_size, device)) for attack in attacks
    ]
    attacked = typed_table("attacks", _stacked([_attack_rows(a, index, images, result) for a, result in results]))
    certified = _certificate_rows(model, images, index, samples, report, settings, device)
    shown = {*range(settings.examples), *sandwich_violations(attacked, certified)["index"]}
    examples = [row for a, result in results for row in _example_rows(a, index, images, result, shown=shown)]
    return {
        "samples": samples,
        "attacks": attacked,
        "certificates": certified,
        "examples": typed_table("examples", examples),
    }


def _stacked(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _sample_rows(index: Tensor, labels: Tensor, logits: Tensor) -> pd.DataFrame:
    prediction = logits.argmax(dim=1)
    finite = torch.isfinite(logits).all(dim=1)
    return pd.DataFrame(
        {
            "index": index.numpy(),
            "label": labels.numpy(),
            "prediction": prediction.numpy(),
            "correct": ((prediction == labels) & finite).numpy(),
            "margin": label_margin(logits, labels).to(torch.float64).numpy(),
            "finite": finite.numpy(),
        }
    )


def _attack(
    model: nn.Module,
    attack: Attack,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    batch_size: int,
    device: torch.device,
) -> AttackResult:
    """The attack's result for all images, computed batch by batch and gathered on the CPU."""

    def work(batch: slice) -> AttackResult:
        return attack(model, images[batch].to(device), labels[batch].to(device), indices=index[batch])

    return AttackResult.concatenate(in_batches(work, len(images), batch_size=batch_size)).to("cpu")


def _attack_rows(attack: Attack, index: Tensor, images: Tensor, result: AttackResult) -> pd.DataFrame:
    difference = result.examples.to(torch.float64) - images.to(torch.float64)
    missing = ~result.fooled
    columns: dict[str, Any] = {"index": index.numpy(), "attack": attack.name, "norm": attack.threat.norm}
    columns["eps"] = _bounded_eps(attack)
    columns["fooled"] = result.fooled.numpy()
    columns["distance"] = result.distance.numpy()
    for norm in ("l2", "linf"):
        columns[norm] = distance(difference, norm).masked_fill(missing, np.inf).numpy()
    columns["adversarial_prediction"] = result.prediction.numpy()
    columns["steps"] = result.steps.numpy()
    columns["gradient_evaluations"] = result.gradient_evaluations.numpy()
    return pd.DataFrame(columns)


def _bounded_eps(attack: Attack) -> float:
    """The eps of the attack's rows; NaN for a minimum-norm attack, which has none."""
    return attack.threat.eps if math.isfinite(attack.threat.eps) else math.nan


def _certificate_rows(
    model: nn.Module,
    images: Tensor,
    index: Tensor,
    samples: pd.DataFrame,
    report: LipschitzReport | None,
    settings: Settings,
    device: torch.device,
) -> pd.DataFrame:
    """One row per sample, certificate and norm; none of the Lipschitz certificate where the network was refused.

    That certificate is of the float64 network. Where that answers otherwise than the network as it runs, or where an
    answer is not finite, the radius is 0.
    """
    tables = []
    if settings.smoothing is not None:
        smoothed = settings.smoothing(model, images.to(device), indices=index)
        tables.append(_smoothed_rows(smoothed, settings.smoothing.name, index))
    for norm in settings.certified_norms() if report is not None and not report.refused else ():
        certificates = certify(model, images.to(device), norm=norm, report=report, batch_size=settings.batch_size)
        prediction = certificates.prediction.cpu().numpy()
        same = (prediction == samples["prediction"].to_numpy()) & samples["finite"].to_numpy()
        tables.append(
            pd.DataFrame(
                {
                    "index": index.numpy(),
                    "certificate": "lipschitz",
                    "norm": norm,
                    "radius": np.where(same, certificates.radius.cpu().numpy(), 0.0),
                    "prediction": prediction,
                    "source": certificates.source,
                    "guarantee": certificates.guarantee,
                }
            )
        )
    return typed_table("certificates", _stacked(tables))


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


def _example_rows(
    attack: Attack, index: Tensor, images: Tensor, result: AttackResult, *, shown: set[int]
) -> list[dict[str, Any]]:
    """The adversarial examples that the attack found for the samples in `shown`."""
    found = (result.fooled & (result.distance > 0)).tolist()
    wanted = [i for i, sample in enumerate(index.tolist()) if found[i] and sample in shown]
    channels, height, width = images.shape[1:]
    return [
        {
            "index": int(index[i]),
            "attack": attack.name,
            "norm": attack.threat.norm,
            "eps": _bounded_eps(attack),
            "channels": channels,
            "height": height,
            "width": width,
            "clean": images[i].numpy().tobytes(),
            "adversarial": result.examples[i].to(torch.float32).numpy().tobytes(),
        }
        for i in wanted
    ]
