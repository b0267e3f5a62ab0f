"""What an attack returns: one entry per sample, in the order of the images given."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from robustres.attacks.base.findings import Diagnosis
from robustres.errors import InputError


@dataclass(frozen=True, repr=False)
class AttackResult:
    """The outcome of one attack on N samples.

    examples: (N, C, H, W), inside the closed eps-ball and [0, 1] when checked in float64. Where the attack failed it
        is the tried image with the largest margin loss.
    fooled: (N,) bool; the model, as given and in its own precision, answers the example wrongly (or with the target).
    distance: (N,) float64 in the threat's norm; infinite where not fooled, 0 where no change was needed.
    prediction: (N,) int64, the model's answer to the example.
    loss: (N,) margin loss of the example: largest other logit minus the label's (the target's minus the largest
        other, if targeted); never negative where fooled, and 0 where the model resolves a tie wrongly.
    verified: (N,) bool; the example was evaluated again on the model as given, after the last rounding.
    steps: (N,) int64, updates of the iterate, over all restarts.
    gradient_evaluations: (N,) int64, how often a gradient was computed for this sample.
    evaluations: (N,) int64, how often the model was run on this sample for any reason, gradients included.
    zero_gradients: (N,) int64, how many of those gradients were exactly zero.
    nonfinite: (N,) bool; the model answered NaN or infinity somewhere in the ball. Never counted as fooled.
    diagnosis: what `diagnose` found about masked gradients, where it was asked.
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
        """What a reader wants first; the tensors have their own names."""
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
        """The entries that `index` (bool mask or positions) picks."""
        chosen = {name: getattr(self, name)[index] for name in _PER_SAMPLE}
        return replace(self, **chosen, diagnosis=None)

    @staticmethod
    def concatenate(results: Sequence["AttackResult"]) -> "AttackResult":
        """Results of consecutive batches as one."""
        if not results:
            raise InputError("there are no results to concatenate; give at least one")
        joined = {name: torch.cat([getattr(result, name) for result in results]) for name in _PER_SAMPLE}
        return replace(results[0], **joined, diagnosis=None)


_PER_SAMPLE = tuple(field.name for field in fields(AttackResult) if field.name != "diagnosis")
