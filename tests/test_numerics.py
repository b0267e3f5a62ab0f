"""Rounding directions, checked in exact rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustres.errors import PrecisionError
from robustres.numerics import (
    distance,
    gamma,
    require_certifiable_arithmetic,
    round_radius_down,
    rounded_down,
    rounded_up,
)


@given(st.integers(1, 10**9))
def test_gamma_is_at_or_above_its_exact_value(operations: int) -> None:
    u = Fraction(1, 2**53)
    assert Fraction(gamma(operations)) >= operations * u / (1 - operations * u)


def test_gamma_refuses_more_operations_than_float32_can_bound() -> None:
    with pytest.raises(PrecisionError, match="float64"):
        gamma(2**24, torch.float32)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_a_rounded_sum_encloses_the_exact_sum(values: list[float]) -> None:
    computed = 0.0
    for value in values:
        computed += value
    exact = sum(map(Fraction, values))
    assert Fraction(rounded_down(computed, len(values))) <= exact <= Fraction(rounded_up(computed, len(values)))


def test_nan_is_an_infinite_bound_and_a_zero_radius() -> None:
    assert rounded_up(math.nan, 1) == math.inf
    assert rounded_down(math.nan, 1) == 0.0


def test_radii_are_rounded_towards_zero_and_unusable_ones_become_zero() -> None:
    radius = torch.tensor([1.0, 0.0, -1.0, math.nan, math.inf, -math.inf], dtype=torch.float64)
    rounded = round_radius_down(radius)
    assert rounded[0] == math.nextafter(1.0, 0.0)
    assert torch.equal(rounded[1:], torch.zeros(5, dtype=torch.float64))


def test_autocast_is_refused_for_certification() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(PrecisionError, match="autocast"):
        require_certifiable_arithmetic("cpu")


def test_distances_are_measured_per_sample_in_float64() -> None:
    difference = torch.tensor([[[3.0, -4.0]], [[0.0, 0.5]]])
    assert distance(difference, "l2").tolist() == [5.0, 0.5]
    assert distance(difference, "linf").tolist() == [4.0, 0.5]
    assert distance(difference, "l1").tolist() == [7.0, 0.5]
