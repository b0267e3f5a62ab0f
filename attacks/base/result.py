"""The result of an attack: one entry per sample, in the order of the given images."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from robustres.attacks.base.findings import Diagnosis
from robustres.errors import InputError


@dataclass(frozen=True, repr=False)
class AttackResult:
    """The outcome of one attack on N samples.

    examples: (N, C, H, W), inside the closed eps-ball and [0, 1] when checked in float64. Where the attack failed, the
    evaluated image with the largest margin loss.
    fooled: (N,) bool; the model, as given and in its own precision, misclassifies the example (or predicts the target).
    distance: (N,) float64 in the threat's norm; infinite where not fooled, 0 where no change was needed.
    prediction: (N,) int64, the predicted class of the example.
    loss: (N,) margin loss of the example: largest other logit minus the label's (the target's minus the largest
        other, if targeted); never negative where fooled, and 0 where a tie is resolved wrongly.
    verified: (N,) bool; the example was evaluated again on the model as given, after the last rounding.
    steps: (N,) int64, updates of the iterate, over all restarts.
    gradient_evaluations: (N,) int64, number of gradients computed for this sample.
    evaluations: (N,) int64, number of runs of the model on this sample for any reason, including gradients.
    zero_gradients: (N,) int64, number of gradients that were exactly zero.
    nonfinite: (N,) bool; the model returned NaN or infinity somewhere in the ball. Never counted as fooled.
    diagnosis: the findings of `diagnose` about masked gradients, if it was run.
    """

    examples: Tensor
    fooled: Tensor
    distance: Tensor
    prediction: Tensor
    loss: Tensor
    verified: Tensor
    steps: Tensor
    gradient_evaluations: Tensor
    evaluations: Tensor
    zero_gradients: Tensor
    nonfinite: Tensor
    diagnosis: Diagnosis | None = None

    def __len__(self) -> int:
        return len(self.fooled)

    def __repr__(self) -> str:
        """A short summary, without the tensors."""
        fooled = f"{len(self) - self.robust} of {len(self)} samples fooled"
        away = f", median distance {float(self.distance[self.fooled].median()):.4g}" if self.robust < len(self) else ""
        return f"AttackResult({fooled}{away}; {int(self.gradient_evaluations.sum())} gradients)"

    @property
    def robust(self) -> int:
        """How many samples withstood the attack."""
        return int((~self.fooled).sum())

    def to(self, device: torch.device | str) -> "AttackResult":
        """The same result on another device."""
        moved = {name: getattr(self, name).to(device) for name in _PER_SAMPLE}
        return replace(self, **moved)

    def select(self, index: Tensor) -> "AttackResult":
        """The entries selected by `index` (bool mask or positions)."""
        chosen = {name: getattr(self, name)[index] for name in _PER_SAMPLE}
        return replace(self, **chosen, diagnosis=None)

    @staticmethod
    def concatenate(results: Sequence["AttackResult"]) -> "AttackResult":
        """The results of consecutive batches as one result."""
        if not results:
            raise InputError("there are no results to concatenate; give at least one")
        joined = {name: torch.cat([getattr(result, name) for result in results]) for name in _PER_SAMPLE}
        return replace(results[0], **joined, diagnosis=None)


_PER_SAMPLE = tuple(field.name for field in fields(AttackResult) if field.name != "diagnosis")
