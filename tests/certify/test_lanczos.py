"""Bounds that hold with a stated probability: coverage where failures are frequent, tightness, dense ground truth."""

import math

import pytest
import torch
from hypothesis import given, settings

from robustres.certify import lipschitz
from robustres.certify.maps.convolution import Convolution, padded
from robustres.certify.maps.linear_map import Dense
from robustres.certify.norms.lanczos import _log_polynomial, lanczos_bound
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.errors import InputError
from tests.certify.strategies import convolutions


def with_gap(size: int, gap: float) -> Dense:
    """A diagonal map with the largest singular value 1 and all others in [0, 1 - gap]."""
    values = torch.linspace(0, 1 - gap, size, dtype=torch.float64)
    values[-1] = 1.0
    return Dense(torch.diag(values))


@pytest.mark.parametrize("size", [3, 4, 10, 300])
def test_a_component_of_a_uniform_direction_is_rarely_small(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    sample = torch.randn(40_000, size, generator=generator, dtype=torch.float64)
    component = (sample[:, 0] / sample.norm(dim=1)).abs()
    for delta in (0.3, 0.1, 0.02):
        share = float((component < delta * math.sqrt(math.pi / (2 * size))).double().mean())
        assert share <= delta + 4 * math.sqrt(delta / 40_000)
        assert share >= 0.7 * delta  # the constant is not too small either


@pytest.mark.parametrize("delta", [0.5, 0.2])
def test_failures_are_no_more_frequent_than_stated(delta: float) -> None:
    generator = torch.Generator().manual_seed(1)
    map_, trials = with_gap(60, 0.02), 400
    failures = sum(lanczos_bound(map_, delta=delta, steps=3, generator=generator) < 1 for _ in range(trials))
    assert failures <= trials * delta + 4 * math.sqrt(trials * delta)


def test_the_lanczos_bound_tightens_with_more_steps() -> None:
    map_ = Convolution(torch.randn(6, 6, 3, 3, generator=torch.Generator().manual_seed(0)), (6, 10, 10), padding=1)
    exact = float(torch.linalg.svdvals(map_.dense())[0])
    bounds = [lanczos_bound(map_, steps=steps) for steps in (30, 60, 120)]
    assert exact <= bounds[2] <= bounds[1] <= bounds[0]
    assert bounds[2] <= 1.001 * exact


@settings(deadline=None, max_examples=15)
@given(convolutions(circular=True))
def test_probabilistic_bounds_hold_on_random_convolutions(map_: Convolution) -> None:
    exact = float(torch.linalg.svdvals(map_.dense())[0])
    assert exact <= spectral_norm(map_, method="lanczos").upper * (1 + 1e-12)


def test_the_guarantee_is_recorded_and_only_given_when_allowed() -> None:
    map_ = Convolution(torch.randn(4, 4, 3, 3), (4, 42, 42)) @ padded((4, 40, 40), ((1, 1), (1, 1)), "reflect")
    assert str(spectral_norm(map_).guarantee) == "deterministic"
    allowed = spectral_norm(map_, delta=1e-9)
    assert (allowed.method, str(allowed.guarantee)) == ("lanczos", "probability 1 - 1e-09")
    assert allowed.upper <= spectral_norm(map_).upper
    assert str(spectral_norm(map_, method="lanczos").guarantee) == "probability 1 - 1e-12"
    with pytest.raises(InputError, match="failure probability"):
        spectral_norm(map_, delta=2.0)


def test_nobody_knows_the_random_start_beforehand_unless_a_generator_is_given() -> None:
    map_ = Dense(torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert len({lanczos_bound(map_, steps=4) for _ in range(3)}) > 1
    assert len({lanczos_bound(map_, steps=4, generator=torch.Generator().manual_seed(5)) for _ in range(3)}) == 1
    torch.manual_seed(5)  # weights for which the iteration does not converge to the last bit
    module = torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    network = torch.nn.Sequential(module, torch.nn.Flatten())
    uppers = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        report = lipschitz(network, (4, 40, 40), delta=1e-9, lower_steps=0, whole_effort=0.0, generator=generator)
        uppers.append(report.upper)
    assert uppers[0] == uppers[1] != uppers[2]


def test_an_isometry_and_the_zero_map_are_bounded() -> None:
    identity = Dense(torch.eye(50))
    assert 1 <= lanczos_bound(identity, delta=1e-6) <= 1.0001
    assert lanczos_bound(Dense(torch.zeros(5, 5))) <= 1e-130  # numbers of this size are squared
    with pytest.raises(InputError, match="at least 3 dimensions"):
        lanczos_bound(Dense(torch.eye(2)))


def test_the_polynomial_is_that_of_the_recurrence() -> None:
    diagonal, off = [0.3, 0.5, 0.2], [0.4, 0.3, 0.6]
    matrix = (
        torch.diag(torch.tensor(diagonal))
        + torch.diag(torch.tensor(off[:2]), 1)
        + torch.diag(torch.tensor(off[:2]), -1)
    )
    expected = math.log(float(torch.linalg.det(2.0 * torch.eye(3) - matrix)) / (0.4 * 0.3 * 0.6))
    assert _log_polynomial(2.0, diagonal, off) == pytest.approx(expected, rel=1e-5)
