"""The checks and guarantees of an image set."""

import math

import pytest
import torch

from robustres.data import ImageSet
from robustres.errors import DataError


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def make(pixels: torch.Tensor, labels: list[int], classes: int = 3) -> ImageSet:
    return ImageSet(pixels, torch.tensor(labels, dtype=torch.int64), tuple("abcdefghij"[:classes]), "here")


def test_a_valid_set_keeps_its_shape_and_counts() -> None:
    found = make(images(4, 3, 5, 6), [0, 1, 2, 0])
    assert (len(found), found.classes, found.image_shape) == (4, 3, (3, 5, 6))


def test_the_digest_depends_on_pixels_and_on_labels_only() -> None:
    pixels = images(2, 1, 4, 4)
    same, other = make(pixels, [0, 1]), make(pixels, [0, 2])
    changed = pixels.clone()
    changed[0, 0, 0, 0] = 0.5
    assert make(pixels.clone(), [0, 1]).sha256 == same.sha256
    assert other.sha256 != same.sha256
    assert make(changed, [0, 1]).sha256 != same.sha256


def test_a_subset_has_the_requested_samples_and_its_own_digest() -> None:
    whole = make(images(4, 1, 4, 4), [0, 1, 2, 1])
    part = whole.subset(torch.tensor([3, 0]))
    assert torch.equal(part.images, whole.images[[3, 0]])
    assert part.labels.tolist() == [1, 0]
    assert part.sha256 != whole.sha256


def test_a_limit_takes_the_first_samples_and_at_most_all() -> None:
    whole = make(images(4, 1, 4, 4), [0, 1, 2, 1])
    assert whole.first(2).labels.tolist() == [0, 1]
    assert whole.first(9) is whole
    with pytest.raises(DataError, match="at least 1"):
        whole.first(0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x: x * 2 - 1, "look already normalised"),
        (lambda x: x * 255, "divide by 255"),
        (lambda x: x.half(), "must be float32 or float64"),
        (lambda x: x[0], r"shape \(N, C, H, W\)"),
        (lambda x: x[:0], "there are no images"),
        (lambda x: x.index_fill(0, torch.tensor([2]), math.nan), "image 2 holds a NaN"),
        (lambda x: x.index_fill(0, torch.tensor([1]), math.inf), "image 1 holds a NaN or an infinity"),
        (lambda x: torch.cat([x, x]), "8 images but 4 labels"),
    ],
)
def test_unusable_images_are_refused_in_one_sentence(change, sentence: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=sentence) as refusal:
        make(change(images(4, 1, 6, 6)), [0, 1, 2, 0])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_outside_the_classes_is_named_with_its_sample(wrong: int) -> None:
    with pytest.raises(DataError, match=f"sample 1 has label {wrong}, outside the classes 0 .. 2"):
        make(images(2, 1, 4, 4), [0, wrong])
