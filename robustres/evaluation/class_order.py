"""Whether the labels of a data set count its classes in another order than the model's outputs do."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from robustres.data import ImageSet

# Samples per class below which an order that explains the answers may be chance, and what counts as explained.
SAMPLES_PER_CLASS, EXPLAINED = 5, 0.6


def doubts(data: ImageSet, labels: Tensor, predictions: Tensor, outputs: int) -> list[str]:
    """Sentences on what looks wrong about the labels (N,) beside the model's predictions (N,).

    outputs: how many classes the model has.
    """
    found = []
    if data.ordered_by_name and data.classes < outputs:
        found.append(
            f"{data.source} has {data.classes} class folders and the model {outputs} outputs; the folders count as the "
            "first classes in alphabetical order: name them in the order of the outputs with --classes FILE (classes=)"
        )
    correct, permuted = _accuracies(labels, predictions, outputs)
    present = len(torch.unique(labels))
    enough = present > 1 and len(labels) >= SAMPLES_PER_CLASS * present
    if enough and permuted >= EXPLAINED and correct <= permuted / 2:
        found.append(
            f"{correct:.0%} of the answers are right, and {permuted:.0%} would be if the classes stood in another "
            "order; the labels probably count the classes in another order than the model's outputs: for folder:DIR "
            "give --classes FILE (classes=), else renumber the labels"
        )
    return found


def _accuracies(labels: Tensor, predictions: Tensor, outputs: int) -> tuple[float, float]:
    """The share of right answers, and the largest that any order of the outputs gives."""
    seen = torch.unique(torch.cat([labels, predictions]))  # classes that nothing is about play no role
    rows, columns = (torch.searchsorted(seen, values) for values in (labels, predictions))
    table = torch.bincount(rows * len(seen) + columns, minlength=len(seen) ** 2).reshape(len(seen), len(seen))
    best = linear_sum_assignment(table.numpy(), maximize=True)
    return float(table.diagonal().sum()) / len(labels), float(table.numpy()[best].sum()) / len(labels)
