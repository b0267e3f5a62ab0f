"""The training losses: one function per loss, all with the arguments (logits, labels, row distances, body, eps)."""

import torch
from torch import Tensor
from torch.nn import functional

from robustres.training.margins import pairwise_radii


def gloro(logits: Tensor, labels: Tensor, distances: Tensor, body: Tensor | float, eps: float) -> Tensor:
    """Logits in which every other class is raised by the most it could gain within eps; their cross-entropy is the
    loss.

    z_j + eps L |w_j - w_y| for j != y: the label is the largest exactly if its certified radius exceeds eps (after
    Leino, Wang and Fredrikson 2021, class by class as in their TRADES-like variant).
    """
    return logits + eps * body * distances


def emma(logits: Tensor, labels: Tensor, distances: Tensor, body: Tensor | float, eps: float) -> Tensor:
    """The same with a separate budget for each pair: its current radius, between 0 and eps (Hu et al. 2023, EMMA).

    Of a pair that is not yet certified no more is demanded than it has, so that hard samples do not dominate the rest.
    """
    with torch.no_grad():
        budget = pairwise_radii(logits, labels, distances, body).clamp(0.0, eps)
    return logits + budget * body * distances


def certified_cross_entropy(worst_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of the worst-case logits times a temperature."""
    return functional.cross_entropy(temperature * worst_logits, labels)


def offset(logits: Tensor, labels: Tensor, distances: Tensor, body: Tensor | float, eps: float) -> Tensor:
    """The label's logit lowered by sqrt(2) L eps (Prach and Lampert 2022), for heads with rows of norm 1."""
    lowered = functional.one_hot(labels, logits.shape[1]) * (2**0.5 * eps * body)
    return logits - lowered


def annealed_cross_entropy(worst_logits: Tensor, labels: Tensor, temperature: float, power: float) -> Tensor:
    """-(1 - p)^power log p, p the label's probability: confidently correct samples have less weight (Lai et al.
    2025).
    """
    log_p = functional.log_softmax(temperature * worst_logits, dim=1).gather(1, labels[:, None]).squeeze(1)
    return (-((1 - log_p.exp()) ** power) * log_p).mean()


def trades(natural: Tensor, adversarial: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Cross-entropy of the natural logits plus beta KL(natural, adversarial) (Zhang et al. 2019)."""
    return functional.cross_entropy(natural, labels) + beta * divergence(natural, adversarial).mean()


def divergence(natural: Tensor, adversarial: Tensor) -> Tensor:
    """KL divergence of the two answers per sample (N,)."""
    log_p, log_q = functional.log_softmax(natural, dim=1), functional.log_softmax(adversarial, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
