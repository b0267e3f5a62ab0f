"""The table rows of one part of the samples: predictions, attacks, certificates, and examples for the gallery."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustres.attacks import Attack, AttackResult
from robustres.certify import NETWORK, Certificate, Guarantee, RadiusColumn, best_radii
from robustres.errors import InputError
from robustres.evaluation.batches import in_batches
from robustres.evaluation.forward import label_margin
from robustres.evaluation.settings import Settings
from robustres.evaluation.timing import Timing
from robustres.numerics import distance
from robustres.results import MEASURED_NORMS, Sandwich, typed_table
from robustres.threat import Norm

MEASURED_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Part:
    """Every per-sample table of consecutive samples, and the violations of the sandwich among them."""

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
    certificates: Sequence[Certificate],
    settings: Settings,
    *,
    device: torch.device,
    timing: Timing,
    step: Callable[[], None] = lambda: None,
) -> Part:
    """Rows of every per-sample table for these samples; only the examples of one attack are in memory at a time.

    Certificates that make use of adversarial examples and of other radii (`beside`) are computed after the attacks,
    the others before.
    step: called after the certificates and after every attack.
    """
    rows, at_once = _sample_rows(samples), settings.images_at_once(samples.images.shape[1:])
    late = [one for one in certificates if hasattr(one, "beside")]
    early = [one for one in certificates if not hasattr(one, "beside")]
    columns = _columns(model, samples, early, at_once, device=device, timing=timing)
    certified = _certificate_rows(columns, samples, rows)
    step()
    sandwich = Sandwich(certified)
    attacked, examples, kept, violations = [], [], [], []
    for attack in attacks:
        with timing.of("attack", attack.name, attack.threat.norm, _bounded_eps(attack)):
            result = _attack(model, attack, samples, at_once, device)
        found = typed_table("attacks", _attack_rows(attack, samples, result))
        violations.append(sandwich.violations(found))
        shown = {*range(settings.examples), *violations[-1]["index"]}
        examples += _example_rows(attack, samples, result, shown=shown)
        if settings.save_examples:
            kept += _kept_rows(attack, samples, result)
        attacked.append(found)
        step()
    if late:
        answers = dict(zip(rows["index"], rows["prediction"], strict=True))
        beside = [
            one.beside(_distances_of(attacked, answers, one.norm), _proved(columns, samples, answers, one.norm))  # type: ignore[attr-defined]
            for one in late
        ]
        columns = {**columns, **_columns(model, samples, beside, at_once, device=device, timing=timing)}
        certified = _certificate_rows(columns, samples, rows)
        sandwich = Sandwich(certified)
        violations = [sandwich.violations(found) for found in attacked]
    tables = {
        "attacks": typed_table("attacks", _stacked(attacked)),
        "certificates": certified,
        "examples": typed_table("examples", examples),
        "samples": rows,
    }
    if settings.save_examples:
        tables["adversarial"] = typed_table("adversarial", kept)
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
    """The attack's result for all samples on the CPU; the attack itself fills its batches from them."""
    known = (samples.images, samples.labels, samples.logits)
    images, labels, logits = (part.to(device, non_blocking=True) for part in known)
    attack = replace(attack, batch_size=batch_size)
    return attack(model, images, labels, indices=samples.index, clean=logits).to("cpu")


def _attack_rows(attack: Attack, samples: Samples, result: AttackResult) -> pd.DataFrame:
    columns: dict[str, Any] = {"index": samples.index.numpy(), "attack": attack.name, "norm": attack.threat.norm}
    columns["eps"] = _bounded_eps(attack)
    columns["fooled"] = result.fooled.numpy()
    columns["distance"] = result.distance.numpy()
    for norm in MEASURED_NORMS:
        own = norm == attack.threat.norm
        columns[norm] = (result.distance if own else _distances(result, samples.images, norm)).numpy()
    columns["adversarial_prediction"] = result.prediction.numpy()
    columns["loss"] = result.loss.to(torch.float64).numpy()
    columns["verified"] = result.verified.numpy()
    columns["steps"] = result.steps.numpy()
    columns["gradient_evaluations"] = result.gradient_evaluations.numpy()
    return pd.DataFrame(columns)


def _distances(result: AttackResult, images: Tensor, norm: Norm) -> Tensor:
    """Distance of every example from its image (N,) in float64, infinite if there is none; computed in chunks."""
    measured = torch.full_like(result.distance, torch.inf)
    for part in torch.split(result.fooled.nonzero().flatten(), MEASURED_AT_ONCE):
        difference = result.examples[part].to(torch.float64) - images[part].to(torch.float64)
        measured[part] = distance(difference, norm)
    return measured


def _bounded_eps(attack: Attack) -> float:
    """The eps of the attack's rows; NaN for a minimum-norm attack, which has none."""
    return attack.threat.eps if math.isfinite(attack.threat.eps) else math.nan


Columns = dict[tuple[str, ...], RadiusColumn]


def _columns(
    model: nn.Module,
    samples: Samples,
    certificates: Sequence[Certificate],
    at_once: int,
    *,
    device: torch.device,
    timing: Timing,
) -> Columns:
    """The column of every certificate, by its name, function and norm."""
    columns: Columns = {}
    for certificate in certificates:

        def work(batch: slice, certificate: Certificate = certificate) -> RadiusColumn:
            index = samples.index[batch]
            return _checked(
                certificate(model, samples.images[batch].to(device), indices=index), certificate, len(index)
            )

        with timing.of("certificate", certificate.name) as row:
            column = _joined(in_batches(work, len(samples), batch_size=at_once), certificate.name)
            row["norm"] = column.norm
        key = (certificate.name, column.function, column.norm)
        if key in columns:
            raise InputError(f"two certificates are called {key[0]!r} in {key[2]}; give one of them a name of its own")
        columns[key] = column
    return columns


def _certificate_rows(columns: Columns, samples: Samples, rows: pd.DataFrame) -> pd.DataFrame:
    """One row per sample and certificate.

    Raises DefectiveBoundError if two deterministic ones certify different predictions of the same function.
    """
    best_radii(list(columns.values()))
    tables = [_radius_rows(column, key[0], samples.index, rows) for key, column in columns.items()]
    return typed_table("certificates", _stacked(tables))


def _distances_of(attacked: Sequence[pd.DataFrame], answers: Mapping[int, int], norm: str) -> dict[int, float]:
    """For each sample, the distance in this norm of the nearest example that changes the network's prediction."""
    nearest: dict[int, float] = {}
    for table in attacked:
        changed = table["adversarial_prediction"] != table["index"].map(answers)
        fooled = table[table["fooled"].to_numpy() & changed.to_numpy()]
        own = fooled["distance"].where(fooled["norm"] == norm, math.inf)
        measured = fooled[norm] if norm in MEASURED_NORMS else own
        for index, value in zip(fooled["index"].tolist(), measured.tolist(), strict=True):
            nearest[index] = min(value, nearest.get(index, math.inf))
    return nearest


def _proved(columns: Columns, samples: Samples, answers: Mapping[int, int], norm: str) -> dict[int, tuple[float, str]]:
    """For each sample, the largest radius that another certificate guarantees for the network's prediction, and its
    source."""
    for column in best_radii(list(columns.values())):
        if (column.function, column.norm, column.guarantee) == (NETWORK, norm, Guarantee()):
            found = zip(
                samples.index.tolist(), column.prediction.tolist(), column.radius.tolist(), column.source, strict=True
            )
            return {index: (radius, source) for index, answer, radius, source in found if answer == answers[index]}
    return {}


def _checked(column: Any, certificate: Certificate, samples: int) -> RadiusColumn:
    """Check the result of a certificate, which may be a user's own."""
    if not isinstance(column, RadiusColumn) or len(column) != samples:
        got = f"{len(column)} radii" if isinstance(column, RadiusColumn) else type(column).__name__
        raise InputError(f"{certificate.name} must return a RadiusColumn of {samples} radii, got {got}")
    return column


def _joined(columns: Sequence[RadiusColumn], name: str) -> RadiusColumn:
    """The columns of consecutive batches as one, on the CPU."""
    first = columns[0]
    if any((column.key, column.guarantee) != (first.key, first.guarantee) for column in columns):
        raise InputError(f"{name} must refer to one function, in one norm and with one guarantee for all samples")
    return RadiusColumn(
        radius=torch.cat([column.radius.cpu().to(torch.float64) for column in columns]),
        prediction=torch.cat([column.prediction.cpu() for column in columns]),
        source=tuple(source for column in columns for source in column.source),
        function=first.function,
        norm=first.norm,
        guarantee=first.guarantee,
    )


def _radius_rows(column: RadiusColumn, name: str, index: Tensor, rows: pd.DataFrame) -> pd.DataFrame:
    """A certificate of the network refers to its float64 predictions: the radius is 0 if the network as it runs makes a
    different prediction, or if a logit is not finite.
    """
    radius, prediction = column.radius.numpy(), column.prediction.numpy()
    if column.function == NETWORK:
        same = (prediction == rows["prediction"].to_numpy()) & rows["finite"].to_numpy()
        radius = np.where(same, radius, 0.0)
    return pd.DataFrame(
        {
            "index": index.numpy(),
            "certificate": name,
            "function": column.function,
            "norm": column.norm,
            "radius": radius,
            "prediction": prediction,
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
            "clean": samples.images[i].to(torch.float32).numpy().tobytes(),
            "adversarial": result.examples[i].to(torch.float32).numpy().tobytes(),
        }
        for i in wanted
    ]


def _kept_rows(attack: Attack, samples: Samples, result: AttackResult) -> list[dict[str, Any]]:
    """Every adversarial example that the attack found, as 8-bit pixels if it is an 8-bit image."""
    channels, height, width = samples.images.shape[1:]
    rows = []
    for i in (result.fooled & (result.distance > 0)).nonzero().flatten().tolist():
        image = result.examples[i].to(torch.float32)
        levels = (image * 255).round().to(torch.uint8)
        exact = bool((levels.to(torch.float32) / 255 == image).all())
        rows.append(
            {
                "index": int(samples.index[i]),
                "attack": attack.name,
                "norm": attack.threat.norm,
                "eps": _bounded_eps(attack),
                "channels": channels,
                "height": height,
                "width": width,
                "pixels": "uint8" if exact else "float32",
                "image": (levels if exact else image).contiguous().numpy().tobytes(),
            }
        )
    return rows
