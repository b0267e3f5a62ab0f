"""Projections against a convex solver, and exact membership in the ball."""

import math

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustres.attacks.geometry import ball
from robustres.attacks.geometry.randomness import sample_keys
from robustres.numerics import distance
from robustres.threat import NORMS, ThreatModel

SOLVER = {"solver": cvxpy.CLARABEL, "tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11}
ORDER = {"l1": 1, "l2": 2, "linf": "inf"}


@pytest.mark.parametrize("seed", range(6))
def test_the_l1_projection_is_the_nearest_point_of_ball_and_box(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(1, 12, generator=generator, dtype=torch.float64)
    v = torch.randn(1, 12, generator=generator, dtype=torch.float64) * (0.2 + seed / 3)
    d = cvxpy.Variable(12)
    inside = [cvxpy.norm1(d) <= 0.8, d >= -x.numpy()[0], d <= 1 - x.numpy()[0]]
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(d - v.numpy()[0])), inside).solve(**SOLVER)
    ours = ball.project_l1_box(v, x, 0.8)
    np.testing.assert_allclose(ours.numpy()[0], d.value, atol=2e-6)


def test_the_l1_projection_of_many_images_cuts_every_change_by_one_amount() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 700, generator=generator)
    x[::2] = x[::2].round(decimals=1)
    v = torch.randn(20, 700, generator=generator) * torch.logspace(-4, 1, 20)[:, None]
    eps = torch.linspace(0.01, 12, 20, dtype=torch.float64)
    x, v = x.double(), v.double()
    size, room = v.abs(), torch.where(v > 0, 1 - x, x)
    low, high = torch.zeros(20, 1, dtype=torch.float64), size.amax(dim=1, keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        too_long = torch.minimum((size - middle).clamp(min=0), room).sum(dim=1, keepdim=True) > eps[:, None]
        low, high = torch.where(too_long, middle, low), torch.where(too_long, high, middle)
    high = torch.where(torch.minimum(size, room).sum(dim=1, keepdim=True) <= eps[:, None], 0.0, high)
    expected = v.sign() * torch.minimum((size - high).clamp(min=0), room)
    torch.testing.assert_close(ball.project_l1_box(v, x, eps), expected, rtol=0, atol=1e-8)
    loose = ball.project_l1_box(v, x, eps, tolerance=1e-2)
    assert (loose.abs().sum(dim=1) <= eps * (1 + 1e-12)).all()
    assert ((loose - expected).abs().sum(dim=1) <= 0.04 * eps).all()
    assert ((x + loose >= -1e-12) & (x + loose <= 1 + 1e-12)).all()


@pytest.mark.parametrize(("eps", "expected"), [(0.0, 0.0), (math.inf, 0.25)])
def test_the_l1_projection_onto_a_point_and_onto_the_box_alone(eps: float, expected: float) -> None:
    moved = ball.project_l1_box(torch.full((2, 4), 3.0), torch.full((2, 4), 0.75), eps)
    torch.testing.assert_close(moved, torch.full((2, 4), expected))


@pytest.mark.parametrize("norm", NORMS)
def test_the_projection_without_a_box_is_the_nearest_point(norm: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.full((1, 9), 0.5, dtype=torch.float64)
    v = torch.randn(1, 9, generator=generator, dtype=torch.float64)
    threat = ThreatModel(norm, 0.3)  # type: ignore[arg-type]
    d = cvxpy.Variable(9)
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(d - v.numpy()[0])), [cvxpy.norm(d, ORDER[norm]) <= 0.3]).solve(
        **SOLVER
    )
    ours = ball.project_(x + v, x, *ball.pixel_bounds(x, 0.3), threat) - x
    np.testing.assert_allclose(ours.numpy()[0], d.value, atol=2e-6)


@settings(deadline=None, max_examples=60)
@given(
    norm=st.sampled_from(NORMS),
    eps=st.floats(1e-5, 40.0),
    scale=st.floats(1e-4, 10.0),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10_000),
)
def test_a_retracted_point_lies_in_the_closed_ball_when_checked_in_float64(
    norm: str, eps: float, scale: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(4, 3, 5, 5, generator=generator, dtype=dtype)
    x[0] = x[0].round()
    points = x + scale * torch.randn(x.shape, generator=generator, dtype=dtype)
    threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
    low, high = ball.pixel_bounds(x, eps)
    for moved in (
        ball.retract(points, x, low, high, threat),
        ball.retract(ball.project_(points.clone(), x, low, high, threat), x, low, high, threat),
    ):
        assert moved.dtype == dtype
        assert (distance(moved.double() - x.double(), norm) <= eps).all()
        assert ((moved >= 0) & (moved <= 1)).all()


def test_retraction_keeps_points_that_are_inside() -> None:
    x = torch.full((2, 3, 4, 4), 0.5)
    points = x + 0.01
    for norm in NORMS:
        assert torch.equal(ball.retract(points, x, *ball.pixel_bounds(x, 1.0), ThreatModel(norm, 1.0)), points)


@pytest.mark.parametrize("norm", NORMS)
def test_a_unit_direction_has_unit_length_and_ascends(norm: str) -> None:
    generator = torch.Generator().manual_seed(3)
    gradient = torch.randn(5, 3, 6, 6, generator=generator) * 1e-30
    direction = ball.unit_direction(gradient, torch.full_like(gradient, 0.5), norm)
    torch.testing.assert_close(distance(direction, norm), torch.ones(5, dtype=torch.float64), rtol=1e-5, atol=0)
    assert ((direction * gradient.sign()).flatten(1).sum(1) > 0).all()


def test_steps_in_l2_do_not_depend_on_powers_of_two_in_the_gradient() -> None:
    generator = torch.Generator().manual_seed(4)
    gradient, points = torch.randn(3, 1, 6, 6, generator=generator), torch.rand(3, 1, 6, 6, generator=generator)
    gradient[1] = 0
    size = torch.full((3,), 0.1)
    step = ball.ascended(points, gradient, size, "l2")
    assert torch.equal(step[1], points[1])
    for exponent in (-100, -60, -3, 60, 100):
        assert torch.equal(ball.ascended(points, gradient * 2.0**exponent, size, "l2"), step)


def test_the_signs_of_the_largest_entries_are_about_as_many_as_wanted() -> None:
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(5, 3, 10, 20, generator=generator) ** 3
    values[4] = values[4].sign()  # equal sizes: all or none
    count = torch.tensor([1, 30, 300, 599, 20])
    signs = ball.signs_of_largest(values, count)
    found = signs.abs().flatten(1).sum(dim=1)
    assert ((found[:4] - count[:4]).abs() <= (0.02 * count[:4]).clamp(min=1)).all()
    assert found[4] == 600
    for row, kept in zip(values[:4], signs[:4], strict=True):
        assert row[kept != 0].abs().min() > row[kept == 0].abs().max()
        assert (kept[kept != 0] == row[kept != 0].sign()).all()


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_lie_in_the_ball_and_fill_it(norm: str) -> None:
    x = torch.full((40, 1, 3, 3), 0.5)
    keys = sample_keys(0, torch.arange(40), torch.zeros(40, dtype=torch.int64))
    threat = ThreatModel(norm, 0.2)  # type: ignore[arg-type]
    start = ball.random_start(keys, x, *ball.pixel_bounds(x, 0.2), threat)
    away = distance(start.double() - x.double(), norm)
    assert (away <= 0.2 * (1 + 1e-6)).all()
    assert away.median() > 0.15
