"""A network that the laboratory did not build, cut at its states and examined claim by claim."""

import math

import pytest
import torch
from torch import nn

from robustres.data import load_data
from robustres.dynamics import NAMES, Claim, dissect, inspect_model
from robustres.models import residual_net

IMAGES = load_data("digits", limit=7)
NETWORK = residual_net(block="residual", depth=2, width=3, image_shape=(1, 8, 8), classes=10, downsample=(1,), pool=1)


def test_the_pieces_run_one_after_the_other_are_the_network() -> None:
    network = dissect(NETWORK, (1, 8, 8), joint=False)
    assert [network.pieces[k].kind for k in network.residual] == ["residual (identity)", "residual (projection)"]
    with torch.no_grad():
        expected = NETWORK.double()(IMAGES.images.double())
    NETWORK.float()
    states = network.states(IMAGES.images)
    torch.testing.assert_close(states[-1], expected)
    for position in network.residual:
        whole = network.skip(position, states[position]) + network.branch(position, states[position])
        torch.testing.assert_close(whole, states[position + 1])
    assert network.upper_from(0) == pytest.approx(network.report.product, rel=1e-6)
    assert math.prod(piece.upper for piece in network.pieces) <= network.upper_from(0)


def test_every_claim_applies_to_it_and_it_is_left_unchanged() -> None:
    before = {name: value.clone() for name, value in NETWORK.state_dict().items()}
    told: list[tuple[str, int, int]] = []
    results = list(inspect_model(NETWORK, IMAGES, joint=False, progress=lambda *step: told.append(step)))
    blocks = [step for step in told if step[0] == "blocks"]
    assert blocks[-1][1] == blocks[-1][2] > 1
    assert [step for step in told if step[0] != "blocks"] == [(name, k, 1) for name in NAMES for k in (0, 1)]
    assert [result.name for result in results if isinstance(result, Claim)] == list(NAMES)
    assert all(result.holds for result in results if isinstance(result, Claim))
    assert all(torch.equal(value, before[name]) for name, value in NETWORK.state_dict().items())


def test_a_network_without_shortcuts_gets_reasons_instead_of_numbers() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    results = list(inspect_model(plain, IMAGES, joint=False))
    reasons = {result[0]: result[1] for result in results if isinstance(result, tuple)}
    assert "no residual block" in reasons["information"]
    assert "gradient-flow" not in reasons
    assert "second-task" not in reasons


def test_a_vanishing_gradient_is_called_so() -> None:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 8)]
    for _ in range(20):
        layers += [nn.ReLU(), nn.Linear(8, 8)]
    results = inspect_model(nn.Sequential(*layers, nn.ReLU(), nn.Linear(8, 10)), IMAGES, joint=False)
    first = next(results)
    assert isinstance(first, Claim)
    assert first.title.endswith(": vanishing")
