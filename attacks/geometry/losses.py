"""The losses that attacks maximise: functions of logits (N, K) and classes (N,); larger is worse for the model.

In untargeted losses `classes` are the labels; in targeted losses they are the targets, and larger is closer to them.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

LossName = Literal["ce", "margin", "dlr", "scaled-ce", "probability-margin"]
Loss = Callable[[Tensor, Tensor], Tensor]
SPREAD = 5.0  # standard deviation of a sample's logits in the scale-invariant losses


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _others(logits: Tensor, classes: Tensor) -> Tensor:
    """The logits with that of the given class replaced by minus infinity."""
    return logits.scatter(1, classes[:, None], -torch.inf)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other logit minus the label's: positive where misclassified (Carlini and Wagner 2017)."""
    return _others(logits, labels).amax(dim=1) - _of_class(logits, labels)


def smooth_margin(logits: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """The margin with the largest other logit replaced by log sum exp(scale z_k) / scale; scale (N,) is positive.

    Never below the margin, and above it by at most log(classes - 1) / scale.
    """
    return torch.logsumexp(_others(logits, labels) * scale[:, None], dim=1) / scale - _of_class(logits, labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, computed as softplus(logsumexp of the other logits - logit of the label).

    Equal to the usual form, but the gradient keeps its direction when the probability of the label rounds to 1.
    """
    return softplus(torch.logsumexp(_others(logits, labels), dim=1) - _of_class(logits, labels))


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, equation 6): the margin over z_(1) - z_(3).

    With two classes there is no third largest logit and the ratio would be constant, so the margin is used instead.
    """
    if logits.shape[1] < 3:
        return margin(logits, labels)
    largest = logits.topk(3, dim=1).values
    return margin(logits, labels) / (largest[:, 0] - largest[:, 2] + 1e-12)


def of_equal_spread(logits: Tensor) -> Tensor:
    """Each row scaled, by a factor treated as constant, to the standard deviation SPREAD.

    A loss of these logits is invariant to the scale of the model's logits: its gradient neither saturates nor vanishes.
    """
    spread = logits.detach().std(dim=1, keepdim=True)
    return logits * (SPREAD / spread.clamp(min=torch.finfo(logits.dtype).tiny))


def scaled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the logits `of_equal_spread`."""
    return cross_entropy(of_equal_spread(logits), labels)


def probability_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other probability minus the label's, of the logits `of_equal_spread`."""
    return margin(of_equal_spread(logits).softmax(dim=1), labels)


def targeted(loss: Loss) -> Loss:
    """The targeted form of a loss: its negative at the target.

    For the margin, this is the target's logit minus the largest other logit.
    """

    def towards(logits: Tensor, targets: Tensor) -> Tensor:
        return -loss(logits, targets)

    return towards


def difference(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Logit of the target minus the label's."""
    return _of_class(logits, targets) - _of_class(logits, labels)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference of logits ratio (Croce and Hein 2020, equation 7).

    (z_t - z_y) over z_(1) - (z_(3) + z_(4)) / 2; with fewer than four classes the last term uses the logits that exist.
    """
    towards = difference(logits, labels, targets)
    if logits.shape[1] < 3:
        return towards
    largest = logits.topk(min(4, logits.shape[1]), dim=1).values
    return towards / (largest[:, 0] - largest[:, 2:].mean(dim=1) + 1e-12)


LOSSES: dict[LossName, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "scaled-ce": scaled_cross_entropy,
    "probability-margin": probability_margin,
}
