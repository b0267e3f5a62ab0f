"""Randomised smoothing against the classifier whose smoothed version is known: a half-space."""

import math
from fractions import Fraction
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.certify.proof.clopper_pearson import lower_confidence_bound
from robustres.certify.radii.smoothing import ABSTAIN, RandomisedSmoothing, smoothed_radius
from robustres.errors import InputError

NORMAL = NormalDist()


def tail(successes: int, trials: int, p: float) -> Fraction:
    """P(Binomial(trials, p) >= successes), exactly."""
    exact = Fraction(p)
    return sum(
        (math.comb(trials, k) * exact**k * (1 - exact) ** (trials - k) for k in range(successes, trials + 1)),
        Fraction(0),
    )


@settings(deadline=None, max_examples=60)
@given(
    trials=st.integers(1, 60),
    share=st.floats(0, 1),
    failure=st.sampled_from([1e-12, 1e-6, 0.001, 0.05, 0.5, 0.9, 0.999]),
)
def test_the_confidence_bound_is_the_exact_one_and_never_above_it(trials: int, share: float, failure: float) -> None:
    successes = round(share * trials)
    bound = lower_confidence_bound(successes, trials, failure)
    if successes:
        # 1e-8 of the probability accounts for the error of the distribution function.
        assert Fraction(failure) * (1 - Fraction(1, 10**7)) < tail(successes, trials, bound) <= Fraction(failure)
    else:
        assert bound == 0


def test_the_confidence_bound_fails_no_more_often_than_stated() -> None:
    trials, truth, failure, repetitions = 50, 0.7, 0.2, 4000
    generator = torch.Generator().manual_seed(0)
    seen = (torch.rand(repetitions, trials, generator=generator) < truth).sum(dim=1).tolist()
    failures = sum(lower_confidence_bound(successes, trials, failure) > truth for successes in seen)
    assert failures / repetitions <= failure + 4 * math.sqrt(failure * (1 - failure) / repetitions)
    assert failures / repetitions > failure / 4


@pytest.mark.parametrize(("successes", "trials", "failure"), [(3, 2, 0.1), (-1, 2, 0.1), (0, 0, 0.1), (1, 2, 0.0)])
def test_a_confidence_bound_needs_counts_and_a_probability(successes: int, trials: int, failure: float) -> None:
    with pytest.raises(InputError):
        lower_confidence_bound(successes, trials, failure)


@settings(deadline=None, max_examples=100)
@given(p=st.floats(0.5, 1, exclude_min=True, exclude_max=True), sigma=st.floats(1e-3, 10))
def test_the_radius_is_the_gaussian_quantile_rounded_down(p: float, sigma: float) -> None:
    radius = smoothed_radius(p, sigma)
    assert radius == pytest.approx(sigma * NORMAL.inv_cdf(p), rel=1e-9, abs=1e-12)
    assert radius < sigma * NORMAL.inv_cdf(p) or radius == 0


class HalfSpace(nn.Module):
    """Class 1 where w x + b > 0: the smoothed classifier is the half-space itself."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.bias = bias
        self.largest_batch = 0

    def forward(self, x: Tensor) -> Tensor:
        self.largest_batch = max(self.largest_batch, len(x))
        score = x.flatten(1) @ self.weight + self.bias
        return torch.stack([-score, score], dim=1)


@pytest.fixture
def half_space() -> HalfSpace:
    generator = torch.Generator().manual_seed(1)
    return HalfSpace(torch.randn(16, generator=generator), 0.1)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(2))


def test_the_radius_of_a_half_space_is_below_its_distance_and_close_to_it(
    half_space: HalfSpace, images: Tensor
) -> None:
    smoothing = RandomisedSmoothing(sigma=1.0, estimation_samples=20_000, alpha=1e-6)
    column = smoothing(half_space, images)
    score = images.flatten(1).double() @ half_space.weight.double() + half_space.bias
    distance = score.abs() / half_space.weight.double().norm()
    assert bool((column.radius <= distance).all())
    assert bool((column.radius >= distance - 0.08).all())
    kept = ~column.abstained
    assert torch.equal(column.prediction[kept], (score > 0).long()[kept])
    assert bool((column.radius > 0).any())
    assert str(column.guarantee) == "probability 1 - 1e-06"
    assert column.function == "smoothed(sigma=1)"
    assert set(column.source) == {"smoothed(sigma=1)"}


def test_a_sample_on_the_boundary_abstains(half_space: HalfSpace) -> None:
    half_space.bias = 0.0
    column = RandomisedSmoothing(sigma=0.5, estimation_samples=500)(half_space, torch.zeros(5, 1, 4, 4))
    assert bool(column.abstained.all())
    assert column.prediction.tolist() == [ABSTAIN] * 5
    assert column.radius.tolist() == [0.0] * 5


def test_the_noise_of_a_sample_depends_on_its_index_alone(half_space: HalfSpace, images: Tensor) -> None:
    def votes(x: Tensor, indices: Tensor | None = None, **settings: int) -> Tensor:
        return RandomisedSmoothing(sigma=1.0, estimation_samples=300, **settings)(half_space, x, indices=indices).votes

    together = votes(images)
    order = torch.tensor([5, 0, 11])
    assert torch.equal(votes(images[order], order), together[order])
    assert torch.equal(votes(images, batch_size=48), together)
    assert half_space.largest_batch == 300
    assert not torch.equal(votes(images, seed=1), together)
    same_image = votes(images[:1].expand(6, -1, -1, -1))
    assert len(set(same_image.tolist())) > 1


def test_the_two_stages_draw_different_noise(images: Tensor) -> None:
    smoothing = RandomisedSmoothing(sigma=1.0, selection_samples=40, estimation_samples=40)
    first, second = (next(smoothing._noise(images[0], 0, stage)) for stage in ("selection", "estimation"))
    assert first.shape == second.shape == (40, 1, 4, 4)
    assert not torch.equal(first, second)
    assert abs(float(first.mean())) < 0.2
    assert float(first.std()) == pytest.approx(1, abs=0.1)


def test_non_finite_outputs_vote_for_no_class(images: Tensor) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = torch.tensor([1.0, 0.0]).repeat(len(x), 1)
            logits[x.flatten(1)[:, 0] > images[0].flatten()[0]] = math.nan
            return logits

    column = RandomisedSmoothing(sigma=1.0, estimation_samples=1000)(Broken(), images[:1])
    assert 400 < int(column.votes[0]) < 600
    assert column.radius.tolist() == [0.0]


def test_the_model_is_left_as_it_was(images: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    RandomisedSmoothing(sigma=0.5, selection_samples=10, estimation_samples=50)(model, images)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_no_images_give_no_rows(half_space: HalfSpace, images: Tensor) -> None:
    assert len(RandomisedSmoothing(sigma=1.0)(half_space, images[:0])) == 0


@pytest.mark.parametrize(
    "settings",
    [{"sigma": 0.0}, {"sigma": math.nan}, {"alpha": 0.0}, {"alpha": 1.0}, {"estimation_samples": 0}, {"seed": -1}],
)
def test_settings_are_checked_once(settings: dict[str, float]) -> None:
    with pytest.raises(InputError):
        RandomisedSmoothing(**{"sigma": 0.5, **settings})  # type: ignore[arg-type]
