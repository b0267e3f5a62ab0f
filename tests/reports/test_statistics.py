"""Intervals and tests against scipy, and their laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control

from robustres.reports.mcnemar import holm, mcnemar_p
from robustres.reports.wilson import wilson_interval


def pairs(only_first: int, only_second: int, same: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.array([True] * only_first + [False] * only_second + [True] * same)
    second = np.array([False] * only_first + [True] * only_second + [True] * same)
    return first, second


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (86, 100), (9_812, 10_000), (1, 3)])
def test_the_wilson_interval_is_that_of_scipy(count: int, total: int) -> None:
    wanted = binomtest(count, total).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(count, total) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@given(st.integers(1, 5000), st.data())
@settings(max_examples=50, deadline=None)
def test_the_wilson_interval_contains_the_share(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total))
    low, high = wilson_interval(count, total)
    assert 0 <= low <= count / total <= high <= 1


def test_without_counts_the_interval_is_the_unit_interval() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 17), (800, 640), (20_000, 19_000)])
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs(b: int, c: int) -> None:
    wanted = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_p(*pairs(b, c, 7)) == pytest.approx(wanted, rel=1e-8, abs=1e-14)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_holm_only_enlarges_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)
    assert all(q <= len(p_values) * p + 1e-12 for p, q in zip(p_values, adjusted, strict=True) if p == min(p_values))


def test_holm_is_stricter_than_the_false_discovery_rate() -> None:
    p_values = [0.001, 0.01, 0.02, 0.03, 0.5]
    assert np.all(np.array(holm(p_values)) >= false_discovery_control(p_values) - 1e-12)
    assert math.isclose(holm(p_values)[0], 0.005)
