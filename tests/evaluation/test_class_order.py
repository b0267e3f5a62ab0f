"""Labels that number the classes in a different order than the model are detected; genuine errors are not reported."""

import torch

from robustres.data import ImageSet
from robustres.evaluation.class_order import doubts


def a_set(labels: torch.Tensor, classes: int, *, ordered_by_name: bool = False) -> ImageSet:
    pixels, names = torch.zeros(len(labels), 1, 2, 2), tuple(map(str, range(classes)))
    return ImageSet(pixels, labels, names, "here", ordered_by_name=ordered_by_name)


def test_another_order_that_explains_the_predictions_is_named() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 10
    order = torch.randperm(10, generator=generator)
    (sentence,) = doubts(a_set(labels, 10), labels, order[labels], 10)
    assert "100% would be with the classes in another order" in sentence
    assert not doubts(a_set(labels, 10), labels, labels, 10)
    assert not doubts(a_set(labels, 10), labels, torch.randint(10, (100,), generator=generator), 10)
    assert not doubts(a_set(labels, 10), labels, torch.zeros(100, dtype=torch.int64), 10)
    few = torch.arange(10)
    assert not doubts(a_set(few, 10), few, few.flip(0), 10)


def test_fewer_folders_than_outputs_are_named() -> None:
    labels = torch.arange(4) % 2
    (sentence,) = doubts(a_set(labels, 2, ordered_by_name=True), labels, labels, 10)
    assert "2 class folders and the model 10 outputs" in sentence
    assert not doubts(a_set(labels, 2), labels, labels, 10)
