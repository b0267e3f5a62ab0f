"""The parts of the laboratory against closed forms, dense ground truth and brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.dynamics.demonstrations.correction import pairwise_reach
from robustres.dynamics.measures.claim import Finding
from robustres.dynamics.measures.inverse import fixed_point_inverse
from robustres.dynamics.measures.jacobian import jacobians
from robustres.dynamics.measures.schemes import BACKWARD_EULER, FORWARD_EULER, HEUN, RK4, SCHEMES, Scheme, advance
from robustres.dynamics.measures.variation import segments, total_variation
from robustres.dynamics.small_networks.adapter import Adapted, Adapter
from robustres.dynamics.small_networks.flow import Section, flow_net
from robustres.dynamics.small_networks.stack import KINDS, Kind, StackSettings, stack
from robustres.errors import InputError

SEEDS = st.integers(0, 10_000)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def section(size: int, seed: int, scale: float) -> Section:
    field = Section(size).double()
    with torch.no_grad():
        field.linear.weight.copy_(scale * normal(size, size, seed=seed))
        field.linear.bias.copy_(normal(size, seed=seed + 1))
    return field.requires_grad_(False)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("eigenvalue", [-1.0, -3.0, 0.4])
def test_a_step_of_a_linear_field_multiplies_by_the_stability_function(scheme: Scheme, eigenvalue: float) -> None:
    x = normal(5, 1, seed=0)
    slope = torch.full((5, 1, 1), eigenvalue, dtype=torch.float64)
    done = advance(scheme, lambda state: eigenvalue * state, x, 0.3, slope=lambda _: slope)
    factor = float(scheme.stability(np.array([0.3 * eigenvalue + 0j]))[0].real)
    torch.testing.assert_close(done.state, factor * x, rtol=1e-8, atol=1e-8)


def test_the_stability_functions_are_those_of_the_textbook() -> None:
    z = np.array([-0.7 + 0.4j, 0.2 - 1.1j])
    np.testing.assert_allclose(FORWARD_EULER.stability(z), 1 + z)
    np.testing.assert_allclose(BACKWARD_EULER.stability(z), 1 / (1 - z))
    np.testing.assert_allclose(HEUN.stability(z), 1 + z + z**2 / 2)
    np.testing.assert_allclose(RK4.stability(z), 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24)


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, scale=st.floats(0.1, 1.2), h=st.floats(0.05, 2.0))
def test_no_step_expands_any_pair_by_more_than_its_bound(seed: int, scale: float, h: float) -> None:
    field = section(4, seed, scale)
    x, y = normal(64, 4, seed=seed + 2), normal(64, 4, seed=seed + 3)
    y[32:] = x[32:] + 1e-4 * y[32:]
    for scheme in SCHEMES:
        images = [advance(scheme, field, points, h, slope=field.slope) for points in (x, y)]
        off = images[0].residual + images[1].residual
        ratio = ((images[0].state - images[1].state).norm(dim=1) - off) / (x - y).norm(dim=1)
        assert float(ratio.max()) <= scheme.upper(h * field.upper()) * (1 + 1e-9)


def test_backward_euler_contracts_at_every_step_and_forward_euler_up_to_two() -> None:
    assert all(BACKWARD_EULER.upper(step) == 1.0 for step in (0.1, 10.0, 1e6))
    assert FORWARD_EULER.upper(1.99) == 1.0
    assert FORWARD_EULER.upper(2.5) >= 3.5
    assert HEUN.contracts(0.9)
    assert RK4.contracts(0.9)


def test_the_slope_of_a_section_is_its_jacobian_and_its_bound_is_a_bound() -> None:
    field, x = section(5, 3, 0.7), normal(6, 5, seed=9)
    exact = jacobians(field, x)
    torch.testing.assert_close(field.slope(x), exact)
    assert float(torch.linalg.eigvalsh(exact).max()) <= 1e-12
    assert float(torch.linalg.matrix_norm(exact, 2).max()) <= field.upper()


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_the_variation_of_a_sum_lies_between_its_bounds(seed: int) -> None:
    path = segments(normal(4, 3, seed=seed), normal(4, 3, seed=seed + 1), 20)
    branch = torch.tanh(3 * path @ normal(3, 3, seed=seed + 2))
    own, added, both = (total_variation(values) for values in (path, branch, path + branch))
    assert bool(((own - added).abs() <= both + 1e-12).all())
    assert bool((both <= own + added + 1e-12).all())


def test_the_variation_of_a_segment_is_its_length_and_of_a_sine_four() -> None:
    path = segments(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), 7)
    assert total_variation(path).item() == pytest.approx(5.0)
    time = torch.linspace(0, 2 * math.pi, 4001, dtype=torch.float64)
    assert total_variation(time.sin()[None, :, None]).item() == pytest.approx(4.0, abs=1e-6)


@pytest.mark.parametrize("contraction", [0.3, 0.9])
def test_the_inverse_recovers_the_input_within_its_bound(contraction: float) -> None:
    matrix = normal(6, 6, seed=1)
    matrix *= contraction / torch.linalg.matrix_norm(matrix, 2)
    x = normal(10, 6, seed=2)
    y = x + torch.relu(x @ matrix.T)
    trace = fixed_point_inverse(
        lambda v: torch.relu(v @ matrix.T), y, contraction * (1 + 1e-12), iterations=400, truth=x
    )
    assert (trace["error"] <= trace["bound"]).all()
    assert trace["error"].iloc[-1] < 1e-12


def test_an_expanding_branch_is_refused() -> None:
    with pytest.raises(InputError, match="K_F < 1"):
        fixed_point_inverse(lambda v: 2 * v, torch.ones(1, 1), 2.0)


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_a_state_moved_by_less_than_the_reach_keeps_its_prediction(seed: int) -> None:
    head, state = normal(4, 6, seed=seed), normal(8, 6, seed=seed + 1)
    reach = pairwise_reach(state @ head.T, head)
    answer = (state @ head.T).argmax(dim=1)
    gap = (state @ head.T).topk(2, dim=1)
    towards = head[gap.indices[:, 1]] - head[answer]
    direction = towards / towards.norm(dim=1, keepdim=True)
    moved = (state + 0.999 * reach[:, None] * direction) @ head.T
    assert bool((moved.argmax(dim=1) == answer).all())


def test_an_adapter_never_exceeds_its_budget() -> None:
    adapter = Adapter(5, 7, 0.3).double().requires_grad_(False)
    nn.init.normal_(adapter.outer.weight, std=100.0)
    assert float(adapter(normal(200, 5, seed=4)).norm(dim=1).max()) <= 0.3 * (1 + 1e-12)


def test_adapters_move_the_last_state_by_no_more_than_their_reach() -> None:
    base = flow_net(16, 3, sections=2, steps=2).double()
    base.limit(1.9 * base.steps)
    adapted = Adapted(base, 2, budget=0.5).double()
    for adapter in adapted.adapters:
        assert isinstance(adapter, Adapter)
        nn.init.normal_(adapter.outer.weight, std=100.0)
    images = normal(300, 1, 4, 4, seed=5)
    with torch.no_grad():
        moved = (adapted.features(images) - base.states(images)[0][-1]).norm(dim=1)
    assert adapted.reach() == pytest.approx(0.5, rel=1e-5)
    assert 0.01 < float(moved.max()) <= adapted.reach()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_stretches_no_sample_by_more_than_its_bound(kind: Kind) -> None:
    layer = stack(StackSettings(kind, 1, width=6)).double().layers[0]
    values = torch.linalg.matrix_norm(jacobians(layer, normal(50, 6, seed=1)), 2)
    assert float(values.max()) <= layer.upper()  # type: ignore[operator]


def test_a_finding_of_nan_does_not_hold() -> None:
    assert not Finding("gap", math.nan, "measured", "<=", 1.0, "tolerance").holds
    assert Finding("gap", math.nan, "measured").holds
    with pytest.raises(InputError, match="against"):
        Finding("gap", 0.5, "measured", "<=", 1.0)
