"""Whether the labels of a data set number its classes in a different order from the model's outputs."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from robustres.data import ImageSet

# Samples per class below which an order that explains the predictions may be due to chance, and the accuracy that
# counts as explained.
SAMPLES_PER_CLASS, EXPLAINED = 5, 0.6


def doubts(data: ImageSet, labels: Tensor, predictions: Tensor, outputs: int) -> list[str]:
    """Sentences on what looks wrong about the labels (N,) compared with the model's predictions (N,).

    outputs: how many classes the model has.
    """
    found = []
    if data.ordered_by_name and data.classes < outputs:
        found.append(
            f"{data.source} has {data.classes} class folders and the model {outputs} outputs; the folders are taken "
            "as the first classes in alphabetical order: list them in the order of the outputs with --classes FILE "
            "(classes=)"
        )
    correct, permuted = _accuracies(labels, predictions, outputs)
    present = len(torch.unique(labels))
    enough = present > 1 and len(labels) >= SAMPLES_PER_CLASS * present
    if enough and permuted >= EXPLAINED and correct <= permuted / 2:
        found.append(
            f"{correct:.0%} of the predictions are correct, and {permuted:.0%} would be with the classes in "
            "another order; the labels probably number the classes in a different order from the model's outputs: for "
            "folder:DIR give --classes FILE (classes=), otherwise renumber the labels"
        )
    return found


def _accuracies(labels: Tensor, predictions: Tensor, outputs: int) -> tuple[float, float]:
    """The share of correct predictions, and the largest share for any order of the outputs."""
    seen = torch.unique(torch.cat([labels, predictions]))  # classes without labels or predictions play no role
    rows, columns = (torch.searchsorted(seen, values) for values in (labels, predictions))
    table = torch.bincount(rows * len(seen) + columns, minlength=len(seen) ** 2).reshape(len(seen), len(seen))
    best = linear_sum_assignment(table.numpy(), maximize=True)
    return float(table.diagonal().sum()) / len(labels), float(table.numpy()[best].sum()) / len(labels)
