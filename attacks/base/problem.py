"""The task of an attack: the model as given, the images, the criterion of success, and access to the model."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustres.attacks.base import preflight
from robustres.attacks.geometry import losses
from robustres.precision import REDUCED, Taking, floating_types
from robustres.threat import ThreatModel


@dataclass
class Problem:
    """Find, for each image x (N, C, H, W), an allowed image that the model misclassifies.

    labels: (N,). classes: (N,) the labels, or the targets where `targeted`.
    index: (N,) global sample numbers, from which the random numbers are derived.
    search_dtype: precision of the search's forward and backward passes (autocast), None for the model's own.
    writes: whether the model modifies its input in place; it then receives copies.
    """

    model: nn.Module
    x: Tensor
    labels: Tensor
    classes: Tensor
    index: Tensor
    threat: ThreatModel
    targeted: bool = False
    search_dtype: torch.dtype | None = None
    writes: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Type of the points of a search: that of the images, or float32 if they are in half precision."""
        return torch.float32 if self.x.dtype in REDUCED else self.x.dtype

    @property
    def taken(self) -> torch.dtype:
        """The type in which the model receives the images."""
        return self.model.dtype if isinstance(self.model, Taking) else self.x.dtype

    def roundoff(self) -> float:
        """Relative spacing of numbers in the coarsest type of the images and the model."""
        return max(torch.finfo(dtype).eps for dtype in (self.taken, *floating_types(self.model)))

    def first_answers(self, points: Tensor) -> Tensor:
        """Like `answers`, and record whether the model modifies its input in place."""
        given = points.clone()
        version = given._version
        logits = self.answers(given)
        self.writes = given._version != version
        return logits

    def answers(self, points: Tensor) -> Tensor:
        """Logits (N, K) of the model as given, without a gradient."""
        with torch.no_grad():
            logits = self.run(points)
        preflight.check_output(logits, len(points))
        return logits

    def answers_in_batches(self, points: Tensor, batch_size: int) -> Tensor:
        """Like `answers`, at most `batch_size` points at once."""
        return torch.cat([self.answers(part) for part in in_parts(points, batch_size)])

    def search_answers(self, points: Tensor) -> Tensor:
        """Logits in the search's precision, as float32 or better, without a gradient."""
        with torch.no_grad(), self._precision():
            return _at_least_float32(self.run(points.to(self.x.dtype)))

    def gradient(self, points: Tensor, loss: Callable[[Tensor], Tensor]) -> "Gradient":
        """Logits, loss and the loss's gradient at the points.

        A loss that does not depend on the points differentiably has gradient 0. NaN in a gradient becomes 0.
        """
        with torch.enable_grad():
            leaf = points.detach().to(self.x.dtype).requires_grad_(True)
            with self._precision():
                logits = _at_least_float32(self.run(leaf))
            value = loss(logits)
            gradient = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
        gradient = torch.zeros_like(points) if gradient is None else gradient.to(points.dtype)
        sums = gradient.flatten(1).sum(dim=1)
        if not bool(torch.isfinite(sums.sum())):
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            sums = gradient.flatten(1).sum(dim=1)
        return Gradient(logits.detach(), value.detach(), gradient, _vanished(gradient, sums))

    def margin(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Margin loss (N,), positive where the attack has succeeded."""
        value = losses.margin(logits, classes)
        return -value if self.targeted else value

    def succeeded(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Whether the prediction is wrong (or the target); False where a logit is not finite."""
        return self.answered(logits, classes) & torch.isfinite(logits).all(dim=1)

    def answered(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Whether the prediction is wrong (or the target), for finite logits."""
        return (logits.argmax(dim=1) == classes) == self.targeted

    def run(self, points: Tensor) -> Tensor:
        """The model as given on the points, which are left unchanged."""
        logits: Tensor = self.model(points.clone() if self.writes else points)
        return logits

    def _precision(self) -> AbstractContextManager[object]:
        if self.search_dtype is None:
            return nullcontext()
        return torch.autocast(self.x.device.type, dtype=self.search_dtype)


class Gradient(NamedTuple):
    """Logits (N, K), loss (N,), its gradient (N, C, H, W), and whether the gradient is exactly zero (N,)."""

    logits: Tensor
    loss: Tensor
    gradient: Tensor
    vanished: Tensor


def in_parts(values: Tensor, size: int) -> list[Tensor]:
    """The rows of (N, ...) in consecutive parts of at most `size`; an empty list if there are no rows.

    In that case `torch.split` gives one empty part, and many models cannot be called with zero images.
    """
    return list(torch.split(values, size)) if len(values) else []


def _vanished(gradient: Tensor, sums: Tensor) -> Tensor:
    """Mask (N,) of the gradients (N, ...) that are exactly zero; inspects single pixels only where they sum to zero."""
    zero = sums == 0
    if bool(zero.any()):
        zero[zero.clone()] = ~gradient.flatten(1)[zero].any(dim=1)
    return zero


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in REDUCED else logits
