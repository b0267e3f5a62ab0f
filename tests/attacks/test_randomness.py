"""Random numbers per (seed, sample index, restart): independent of the batch, and random."""

import math

import torch

from robustres.attacks.geometry.randomness import integers, normal, sample_keys, uniform


def keys(count: int, *, seed: int = 0, restart: int = 0) -> torch.Tensor:
    return sample_keys(seed, torch.arange(count), torch.full((count,), restart))


def test_a_samples_numbers_do_not_depend_on_its_batch() -> None:
    together = uniform(keys(10), (3, 4), dtype=torch.float32)
    alone = uniform(sample_keys(0, torch.tensor([7]), torch.tensor([0])), (3, 4), dtype=torch.float32)
    assert torch.equal(together[7], alone[0])


def test_seed_index_restart_and_draw_each_change_the_numbers() -> None:
    base = uniform(keys(2), (5,), dtype=torch.float64)
    assert not torch.equal(base[0], base[1])
    for other in (keys(2, seed=1), keys(2, restart=1)):
        assert not torch.isclose(base, uniform(other, (5,), dtype=torch.float64)).any()
    assert not torch.isclose(base, uniform(keys(2), (5,), draw=1, dtype=torch.float64)).any()


def test_uniform_numbers_have_the_moments_of_the_uniform_distribution() -> None:
    numbers = uniform(keys(200), (500,), dtype=torch.float64)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 * math.sqrt(1 / 12 / 1e5)
    assert abs(numbers.var() - 1 / 12) < 0.001
    assert abs(torch.corrcoef(numbers)[0, 1:].mean()) < 0.02


def test_normal_numbers_have_the_moments_of_the_normal_distribution() -> None:
    numbers = normal(keys(200), (500,), dtype=torch.float64)
    assert abs(numbers.mean()) < 0.02
    assert abs(numbers.var() - 1) < 0.02
    assert abs((numbers**4).mean() - 3) < 0.2


def test_integers_cover_their_range_evenly() -> None:
    counts = torch.bincount(integers(keys(100), 7, (700,)).flatten(), minlength=7)
    assert len(counts) == 7
    assert (counts - 10_000).abs().max() < 500


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    normal(keys(3), (4,), dtype=torch.float32)
    assert torch.equal(before, torch.get_rng_state())
