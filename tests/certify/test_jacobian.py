"""Jacobian products and the steepest direction against dense Jacobians and singular values."""

import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.certify.lower.jacobian import JacobianProducts, norms, steepest_directions, unit


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(4, 5),
        )
        .to(torch.float64)
        .eval()
        .requires_grad_(False)
    )


def dense(model: nn.Module, x: Tensor) -> Tensor:
    """(B, outputs, inputs)."""
    rows = [torch.autograd.functional.jacobian(model, sample[None]).reshape(-1, sample.numel()) for sample in x]
    return torch.stack(rows)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), batch=st.integers(1, 4))
def test_products_are_those_of_the_dense_jacobian(seed: int, batch: int) -> None:
    model = network(seed)
    x = torch.rand(batch, 2, 4, 4, dtype=torch.float64)
    jacobian, products = dense(model, x), JacobianProducts(model, x)
    v, u = torch.randn_like(x), torch.randn(batch, 5, dtype=torch.float64)
    torch.testing.assert_close(products.forward(v), torch.einsum("boi,bi->bo", jacobian, v.flatten(1)))
    torch.testing.assert_close(products.transpose(u).flatten(1), torch.einsum("boi,bo->bi", jacobian, u))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000))
@example(seed=589)  # the Jacobian of one of the samples is zero
def test_the_steepest_direction_reaches_the_largest_singular_value(seed: int) -> None:
    model = network(seed)
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    found = steepest_directions(model, x, torch.randn_like(x), steps=20)
    jacobian = dense(model, x)
    torch.testing.assert_close(found.stretch, torch.linalg.matrix_norm(jacobian, ord=2))
    torch.testing.assert_close(norms(found.direction), torch.ones(3, dtype=torch.float64))
    stretched = torch.einsum("boi,bi->bo", jacobian, found.direction.flatten(1))
    torch.testing.assert_close(norms(stretched), found.stretch)


def test_a_function_that_does_not_depend_on_its_input_has_the_constant_zero() -> None:
    x = torch.rand(2, 3, dtype=torch.float64)
    constant = steepest_directions(
        lambda x: torch.ones(len(x), 4, dtype=torch.float64), x, torch.randn_like(x), steps=5
    )
    assert constant.stretch.tolist() == [0.0, 0.0]
    flat = steepest_directions(lambda x: 0 * x, x, torch.randn_like(x), steps=5)
    assert flat.stretch.tolist() == [0.0, 0.0]


def test_a_deadline_that_has_passed_still_gives_a_lower_estimate() -> None:
    x = torch.rand(2, 6, dtype=torch.float64)
    matrix = torch.randn(5, 6, dtype=torch.float64)
    found = steepest_directions(lambda x: x @ matrix.T, x, torch.randn_like(x), steps=50, deadline=time.monotonic() - 1)
    assert bool((found.stretch > 0).all())
    assert bool((found.stretch <= torch.linalg.matrix_norm(matrix, ord=2) * (1 + 1e-12)).all())


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_norms_and_units_survive_tiny_and_huge_numbers(scale: float) -> None:
    x = scale * torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(norms(x) / scale, torch.tensor([5.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(unit(x), torch.tensor([[0.6, 0.8], [0.0, 0.0]], dtype=torch.float64))
