"""Diagnosis of gradient masking: does the attack's failure mean that the model is robust?

The checks follow Athalye, Carlini and Wagner 2018 ("Obfuscated gradients") and Carlini et al. 2019 ("On evaluating
adversarial robustness"): each compares the attack with another procedure that should not do better unless gradients are
masked.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.findings import Diagnosis, Finding
from robustres.attacks.base.result import AttackResult
from robustres.attacks.geometry.losses import LossName, margin
from robustres.attacks.methods.pgd import PGD
from robustres.attacks.methods.square import Square
from robustres.errors import InputError
from robustres.guard import random_state_kept, untouched
from robustres.precision import taking
from robustres.threat import ThreatModel, widest

# Beyond this margin the gradient of cross-entropy underflows in float32; below this standard deviation of the logits
# cross-entropy hardly depends on the image.
SATURATED, FLAT = 88.0, 0.01
TOLERATED = 0.05  # share of samples (or gradients) up to which a deviation is attributed to chance


@dataclass(frozen=True)
class _Subject:
    """The input of every check: the result of the attack, and how to run another attack on the same samples.

    logits: (N, K) of the images; labels: (N,).
    """

    attack: Attack
    result: AttackResult
    logits: Tensor
    labels: Tensor
    run: Callable[[Attack], AttackResult]

    @property
    def shared(self) -> dict[str, Any]:
        """The settings for other attacks; these search in the model's own precision."""
        return self.attack.shared() | {"precision": "model"}

    def missed_by_attack(self, other: AttackResult) -> Tensor:
        """Samples that the other attack fooled and this one did not, (N,) bool."""
        return other.fooled & ~self.result.fooled


def diagnose(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    result: AttackResult | None = None,
    indices: Tensor | None = None,
    queries: int = 500,
) -> Diagnosis:
    """Check whether `attack` was misled by masked gradients on images x (N, C, H, W) with labels y (N,).

    result: of the attack on these samples; the attack is run if not given. queries: of the black-box attack, per
    sample. Costs about ten runs of a 20-step PGD plus the queries. Raises InputError for an unbounded threat.
    """
    if not math.isfinite(attack.threat.eps):
        raise InputError("a diagnosis needs a finite eps; give the attack a threat with the eps in question")
    own = attack(model, x, y, indices=indices) if result is None else result
    subject = _Subject(
        attack, own, _logits(model, x, attack.batch_size), y, lambda other: other(model, x, y, indices=indices)
    )
    pairs = [
        _logit_scale(subject),
        _zero_gradients(subject),
        _other_losses(subject),
        _black_box(subject, queries),
        _unbounded(subject),
        _more_steps(subject),
    ]
    samples = torch.stack([mask for _, mask in pairs]).any(dim=0)
    findings = tuple(finding for finding, _ in pairs)
    return Diagnosis(attack.name, attack.threat.norm, attack.threat.eps, findings, samples)


def _share(mask: Tensor) -> float:
    return float(mask.double().mean()) if len(mask) else 0.0


def _finding(check: str, value: float, bad: str, good: str, *, samples: Tensor) -> Finding:
    """A single sample never makes a check suspicious, however few samples there are."""
    suspicious = value > TOLERATED and int(samples.sum()) > 1
    return Finding(check, value, suspicious, bad if suspicious else good)


def _pgd(subject: _Subject, *, steps: int, loss: LossName = "ce", eps: float | None = None) -> PGD:
    threat = subject.attack.threat if eps is None else ThreatModel(subject.attack.threat.norm, eps)
    # The schedule never stops early, so a survivor is not due to it.
    return PGD(threat, steps=steps, schedule="cosine", loss=loss, **subject.shared)


def _zero_gradients(subject: _Subject) -> tuple[Finding, Tensor]:
    result = subject.result
    if not bool((result.gradient_evaluations > 0).any()):
        result = subject.run(_pgd(subject, steps=2))
    total = int(result.gradient_evaluations.sum())
    value = int(result.zero_gradients.sum()) / total if total else 0.0
    mask = (result.zero_gradients * 2 > result.gradient_evaluations) & ~subject.result.fooled
    bad = (
        f"{value:.0%} of the gradients are exactly zero: the loss is saturated or the model is not differentiable; "
        "use a black-box attack such as square"
    )
    return _finding("zero_gradients", value, bad, "Hardly any gradient is exactly zero.", samples=mask), mask


def _logits(model: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """The logits at the images; the attack has checked the model before."""
    run = taking(model, x)
    with torch.no_grad(), untouched(model), random_state_kept():
        return torch.cat([run(part.clone()) for part in torch.split(x, batch_size)]).float()


def _logit_scale(subject: _Subject) -> tuple[Finding, Tensor]:
    """Affects attacks on plain cross-entropy, not those that switch to the margin loss as ours do."""
    lead = -margin(subject.logits, subject.labels)
    mask = (lead > SATURATED) | (subject.logits.std(dim=1) < FLAT)
    bad = (
        f"The logits of {_share(mask):.0%} of the samples are so large or so small that cross-entropy has no usable "
        "gradient: attacks that follow it alone fail here; use strong, or another loss than cross-entropy"
    )
    good = "The logits are of a size at which cross-entropy has a usable gradient."
    return _finding("logit_scale", _share(mask), bad, good, samples=mask), mask & ~subject.result.fooled


def _other_losses(subject: _Subject) -> tuple[Finding, Tensor]:
    losses: tuple[LossName, ...] = ("ce", "margin", "dlr")
    runs = [subject.run(_pgd(subject, steps=20, loss=loss)) for loss in losses]
    missed = torch.stack([subject.missed_by_attack(run) for run in runs]).any(dim=0)
    bad = (
        f"With another loss a 20-step PGD fools {_share(missed):.0%} more of the samples: "
        "report the worst case over the losses, or use the ensemble"
    )
    good = "A 20-step PGD with other losses finds hardly anything that the attack missed."
    return _finding("loss_sensitivity", _share(missed), bad, good, samples=missed), missed


def _black_box(subject: _Subject, queries: int) -> tuple[Finding, Tensor]:
    square = Square(subject.attack.threat, steps=queries, **subject.shared)
    missed = subject.missed_by_attack(subject.run(square))
    bad = (
        f"Random search without gradients fools a further {_share(missed):.0%} of the samples: the gradients are masked"
    )
    return _finding(
        "black_box", _share(missed), bad, "Random search without gradients does no better.", samples=missed
    ), missed


def _unbounded(subject: _Subject) -> tuple[Finding, Tensor]:
    size = subject.result.examples[0].numel() if len(subject.result) else 1
    whole = widest(subject.attack.threat.norm, size)
    attacks = [_pgd(subject, steps=20, loss=loss, eps=whole) for loss in ("ce", "margin")]
    left = torch.stack([~subject.run(replace(a, step_size=0.1 * whole)).fooled for a in attacks]).all(dim=0)
    bad = (
        f"PGD with an unbounded eps still leaves {_share(left):.0%} of the samples: following the gradient does "
        "not work on this model"
    )
    return _finding(
        "unbounded_eps", _share(left), bad, "PGD with an unbounded eps fools every sample.", samples=left
    ), left


def _more_steps(subject: _Subject) -> tuple[Finding, Tensor]:
    steps = int(getattr(subject.attack, "steps", 1))
    missed = subject.missed_by_attack(subject.run(_pgd(subject, steps=max(5 * steps, 50))))
    bad = f"Five times as many steps fool {_share(missed):.0%} more of the samples: the attack had not converged"
    return _finding(
        "more_steps", _share(missed), bad, "Five times as many steps find hardly any more.", samples=missed
    ), missed
