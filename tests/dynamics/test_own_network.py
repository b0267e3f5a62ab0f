"""The laboratory's results on a given network, against closed forms, dense ground truth and the scaled network."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustres.certify.bounds.block_row import BlockRow
from robustres.data import ImageSet, load_data
from robustres.dynamics import Dissection, dissect
from robustres.dynamics.measures.early_exit import exit_descent, exit_logits
from robustres.dynamics.measures.fit import accuracy
from robustres.dynamics.measures.jacobian import extreme_singular_values, jacobians, lanczos_largest
from robustres.dynamics.measures.scaling import scaled_logits, scaled_upper, scaling_sweep
from robustres.dynamics.observations.own_correction import correction_of
from robustres.dynamics.observations.own_expansion import expansion_of
from robustres.dynamics.observations.own_information import information_of
from robustres.dynamics.small_networks.highway_radius import highway_radius, jacobian_on_ball
from robustres.dynamics.small_networks.stack import Stack, StackSettings, stack
from robustres.errors import InputError
from robustres.models import residual_net

SETTINGS = StackSettings("residual", 3, width=8, beta=0.7)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return load_data("digits", limit=24)


@pytest.fixture(scope="module")
def network() -> Dissection:
    return dissect(stack(SETTINGS, seed=3), (1, 8, 8), joint=False)


def own_stack(alpha: float = 1.0, beta: float = 1.0) -> Stack:
    """The same weights with every block scaled: alpha x + beta (0.7 F)."""
    settings = StackSettings("residual", 3, width=8, alpha=alpha, beta=0.7 * beta)
    model = stack(settings)
    model.load_state_dict(stack(SETTINGS, seed=3).state_dict())
    return model.double().requires_grad_(False)


def test_an_early_exit_is_the_head_applied_to_the_state(network: Dissection, images: ImageSet) -> None:
    model = own_stack()
    states = model.states(images.images.double())
    found = exit_logits(network, network.states(images.images))
    for logits, state in zip(found, states, strict=True):
        torch.testing.assert_close(logits, model.head(state))


def test_the_remaining_correction_and_the_exit_are_those_of_the_states(network: Dissection, images: ImageSet) -> None:
    model = own_stack()
    states = model.states(images.images.double())
    frame = correction_of(network, images).frame
    for block, row in frame.iterrows():
        step, remaining = states[block + 1] - states[block], states[-1] - states[block]
        assert row["alignment"] == pytest.approx(float(torch.cosine_similarity(step, remaining).mean()))
        answers = model.head(states[block + 1]).argmax(dim=1)
        assert row["exit_accuracy"] == pytest.approx(float((answers == images.labels).double().mean()))
    assert frame["alignment"].iloc[-1] == pytest.approx(1.0)
    top = [model.head(states[k]).gather(1, images.labels[:, None])[:, 0] for k in (0, 1)]
    others = [model.head(states[k]).scatter(1, images.labels[:, None], -math.inf).amax(dim=1) for k in (0, 1)]
    gained = ((top[1] - others[1]) - (top[0] - others[0])).mean()
    assert frame["margin_gained"].iloc[0] == pytest.approx(float(gained))


def test_the_descent_direction_lowers_the_loss_of_the_early_exit(network: Dissection, images: ImageSet) -> None:
    position = network.residual[1]
    state = network.states(images.images)[position]
    direction = exit_descent(network, state, position, images.labels)
    head = own_stack().head

    def loss(values: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(head(values), images.labels))

    assert loss(state + 1e-3 * direction) < loss(state)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (1.0, 0.3), (0.6, 1.0), (0.9, 1.2), (1.0, 0.0)])
def test_a_scaled_network_is_the_network_with_scaled_blocks_and_its_bound_holds(
    network: Dissection, images: ImageSet, alpha: float, beta: float
) -> None:
    model = own_stack(alpha, beta)
    torch.testing.assert_close(scaled_logits(network, images.images, alpha, beta), model(images.images.double()))
    row = scaling_sweep(network, images, [(alpha, beta)], eps=0.01).iloc[0]
    assert row["accuracy"] == accuracy(model, images.images.double(), images.labels)
    steepest = torch.linalg.matrix_norm(jacobians(model, images.images.double()), 2).max()
    assert float(steepest) <= row["upper"]
    assert row["certified"] <= row["accuracy"]


@settings(deadline=None, max_examples=100)
@given(alpha=st.floats(-2, 2), beta=st.floats(-2, 2), factor=st.floats(-2, 2))
def test_a_scaled_bound_holds_for_every_scalar_block(alpha: float, beta: float, factor: float) -> None:
    row = BlockRow("b", "residual (identity)", abs(1 + factor), 0.0, "exact", shortcut=1.0, branch=abs(factor))
    assert abs(alpha + beta * factor) <= scaled_upper(row, alpha, beta) * (1 + 1e-12) + 1e-15


def test_the_sweep_certifies_the_unscaled_network_as_the_certifier_does(network: Dissection, images: ImageSet) -> None:
    from robustres.certify import certify

    model = stack(SETTINGS, seed=3)
    certificates = certify(model, images.images, report=network.report)
    row = scaling_sweep(network, images, [(1.0, 1.0)], eps=0.01).iloc[0]
    correct = certificates.prediction == images.labels
    expected = float(torch.where(correct, certificates.radius, 0.0).median())
    assert row["median_radius"] == pytest.approx(expected, rel=1e-3)
    assert row["median_radius"] <= expected
    assert row["upper"] == pytest.approx(network.report.product)


def test_lanczos_stays_below_the_largest_singular_value_but_close_to_it() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    x = torch.randn(5, 30, generator=generator, dtype=torch.float64)

    def function(values: Tensor) -> Tensor:
        return torch.tanh(values @ matrix.T)

    true = torch.linalg.matrix_norm(jacobians(function, x), 2)
    found = lanczos_largest(function, x)
    assert bool((found <= true * (1 + 1e-12)).all())
    assert bool((found >= 0.99 * true).all())
    torch.testing.assert_close(lanczos_largest(function, x, steps=30), true)
    estimated = extreme_singular_values(function, x, largest_state=8)
    assert not estimated.exact
    assert bool(estimated.smallest.isnan().all())


def test_large_states_get_an_estimate_and_no_smallest_singular_value(images: ImageSet) -> None:
    model = residual_net(block="residual", depth=1, width=20, image_shape=(1, 8, 8), classes=10, pool=2)
    network = dissect(model, (1, 8, 8), joint=False)
    claim = information_of(network, images.first(3))
    row = claim.frame.iloc[0]
    assert row["size"] == 1280
    assert row["method"] == "Lanczos"
    assert math.isnan(row["smallest"])
    assert 0 < row["largest"] <= row["upper"]
    assert claim.finding("blocks whose smallest singular value was not computed").value == 1
    assert claim.finding("largest singular value / its bound").side == "estimate"
    assert set(expansion_of(network, images.first(3)).frame["method"].dropna()) == {"Lanczos"}


def test_no_jacobian_on_the_ball_leaves_its_intervals_and_no_answer_changes_within_the_radius(images: ImageSet) -> None:
    model = stack(StackSettings("highway", 3, width=8), seed=1).double().requires_grad_(False)
    with torch.no_grad():
        for layer in model.layers:
            layer.gate.weight.mul_(4)  # type: ignore[union-attr, operator]
    x = images.images.double()
    generator = torch.Generator().manual_seed(0)
    ball = torch.full((len(x),), 0.5, dtype=torch.float64)
    whole = jacobian_on_ball(model, model.states(x), ball)
    radius = highway_radius(model, x)
    assert float(radius.min()) > 0
    answers = model(x).argmax(dim=1)
    for _ in range(20):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        direction = direction / direction.flatten(1).norm(dim=1)[:, None, None, None]
        inside = (x + 0.5 * direction).clamp(0, 1)
        found = jacobians(lambda v: model.states(v)[-1], inside)
        assert bool(((found >= whole.low) & (found <= whole.high)).all())
        near = (x + radius[:, None, None, None] * direction).clamp(0, 1)
        assert torch.equal(model(near).argmax(dim=1), answers)
    with pytest.raises(InputError, match="highway"):
        highway_radius(own_stack(), x)


def test_at_a_point_the_interval_jacobian_is_the_jacobian(images: ImageSet) -> None:
    model = stack(StackSettings("highway", 3, width=8), seed=1).double().requires_grad_(False)
    x = images.images.double()
    whole = jacobian_on_ball(model, model.states(x), torch.zeros(len(x), dtype=torch.float64))
    torch.testing.assert_close(whole.centre, jacobians(lambda v: model.states(v)[-1], x), rtol=1e-6, atol=1e-7)
    assert float(whole.radius.max()) < 1e-6
