"""What is minimised: one function per loss, all of (logits, labels, row distances, body, eps)."""

import torch
from torch import Tensor
from torch.nn import functional

from robustres.training.margins import pairwise_radii


def gloro(logits: Tensor, labels: Tensor, distances: Tensor, body: Tensor | float, eps: float) -> Tensor:
    """Logits in which every other class gains what it could gain within eps; their cross-entropy is the loss.

    z_j + eps L |w_j - w_y| for j != y: the label wins these exactly where its certified radius exceeds eps (after
    Leino, Wang and Fredrikson 2021, class by class as in their TRADES-like variant).
    """
    return logits + eps * body * distances


def emma(logits: Tensor, labels: Tensor, distances: Tensor, body: Tensor | float, eps: float) -> Tensor:
    """The same with a budget of each pair's own: its present radius, between 0 and eps (Hu et al. 2023, EMMA).

    A pair that is not yet certified is asked for no more than it has, so that hard samples do not drown the rest.
    """
    with torch.no_grad():
        budget = pairwise_radii(logits, labels, distances, body).clamp(0.0, eps)
    return logits + budget * body * distances


def certified_cross_entropy(worst_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of the worst-case logits times a temperature."""
    return functional.cross_entropy(temperature * worst_logits, labels)
