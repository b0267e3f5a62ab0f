"""Work in batches: every sample once and in order, even when memory runs out."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustres.evaluation import Settings
from robustres.evaluation.batches import in_batches


@given(total=st.integers(1, 50), batch_size=st.integers(1, 60), memory=st.integers(1, 60))
def test_every_sample_is_covered_once_in_order_even_with_little_memory(
    total: int, batch_size: int, memory: int
) -> None:
    def work(batch: slice) -> list[int]:
        samples = list(range(total))[batch]
        if len(samples) > memory:
            raise torch.OutOfMemoryError
        return samples

    results = in_batches(work, total, batch_size=batch_size)
    assert [sample for batch in results for sample in batch] == list(range(total))


def test_a_single_sample_that_does_not_fit_is_an_error() -> None:
    def work(batch: slice) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        in_batches(work, 3, batch_size=2)


def test_small_images_are_batched_by_512_and_large_ones_in_smaller_batches() -> None:
    settings = Settings(eps={"l2": (0.5,)}, attacks=("fgsm", "pgd"))
    assert settings.images_at_once((1, 28, 28)) == settings.images_at_once((3, 32, 32)) == 512
    assert settings.images_at_once((3, 224, 224)) == 222
    assert settings.images_at_once((3, 9000, 9000)) == 1
    assert replace(settings, batch_size=512).images_at_once((3, 224, 224)) == 512
