"""The first activation and the map before it at once: the bound of the whole elimination, above all attained values."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import lipschitz
from robustres.certify.blocks import first_layer
from robustres.certify.blocks.elimination import eliminate
from robustres.certify.blocks.first_layer import first_layer_square
from robustres.certify.blocks.fixed_point import search
from robustres.certify.blocks.front import Repair
from robustres.certify.blocks.increments import SectorLayer, increments
from robustres.certify.blocks.network_bound import l2_bound
from robustres.certify.graph.network import Node
from robustres.certify.maps.nonlinear import Opaque
from robustres.certify.proof.largest_singular_value import gram


def network(model: nn.Module, *shape: int) -> Node:
    """The simplified network of a module."""
    report = lipschitz(model, shape, joint=False, lower_steps=0)
    assert report.analysis is not None
    return report.analysis.output


def convolutional(activation: nn.Module | None = None) -> nn.Module:
    """Two convolutions and a dense layer."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), activation or nn.ReLU(), nn.Conv2d(3, 4, 3, 2, 1), nn.Tanh(), nn.Flatten(),
        nn.Linear(36, 3),
    ).double()  # fmt: skip


def attained(model: nn.Module, *shape: int) -> float:
    """The largest Jacobian norm among random inputs."""
    x = 2 * torch.randn(30, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x).transpose(0, 1).flatten(2)
    return float(torch.linalg.matrix_norm(jacobian, 2).max())


@pytest.mark.parametrize(
    ("seed", "fixed", "steps", "slack"), [(0, False, 80, 0.0), (1, True, 80, 0.1), (2, True, 2, 0.0)]
)
def test_the_square_is_that_of_the_whole_elimination_and_above_all_slopes(
    seed: int, fixed: bool, steps: int, slack: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where some neurons are fixed at slope 0 or have smaller slopes, and from estimates that are too small."""
    torch.manual_seed(seed)
    model = convolutional()
    output = network(model, 2, 6, 6)
    order = output.ordered()
    first = order[2]
    upper = torch.randint(0, 3, first.shape, dtype=torch.float64) / 2 if fixed else torch.ones(first.shape)
    layers = increments(order, slopes={first: (torch.zeros(first.shape), upper)})
    point = search(order, layers, steps=steps)
    layer, repair = layers[first], Repair(1e-6)
    found = eliminate(order[2:], layers, point, repair=repair, slack=slack)
    whole = eliminate(order, layers, point, repair=repair, slack=slack)
    assert isinstance(layer, SectorLayer)
    assert found is not None
    assert whole is not None
    square = first_layer_square(found, first, layer, point, repair)
    assert math.sqrt(square) == pytest.approx(l2_bound(whole), rel=3e-4 if steps > 2 else 1e-2)
    assert square * (1 + 1e-9) >= l2_bound(whole) ** 2
    if not fixed:
        assert attained(model, 2, 6, 6) <= math.sqrt(square)
    extra = 0.3 * torch.eye(found.rows.shape[2], dtype=torch.float64)[None]
    as_rows = replace(found, rows=torch.cat((found.rows, extra), dim=1))
    as_slack = replace(found, slack=found.slack + 0.09)
    squares = [first_layer_square(one, first, layer, point, repair) for one in (as_rows, as_slack)]
    assert squares[0] == pytest.approx(squares[1], rel=1e-6)
    assert squares[0] > 1.0001 * square or steps == 2
    own = first_layer._ritz_value
    for factor in (0.999, 0.995, 0.5):
        monkeypatch.setattr(first_layer, "_ritz_value", lambda *given, factor=factor: factor * own(*given))
        lower = first_layer_square(found, first, layer, point, repair)
        assert lower * (1 + 1e-9) >= l2_bound(whole) ** 2


def test_rounding_errors_are_included(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a unit roundoff a billion times as large the bound is larger; the cost of the true one is negligible."""
    torch.manual_seed(0)
    order = network(convolutional(), 2, 6, 6).ordered()
    layers = increments(order)
    point = search(order, layers, steps=80)
    layer, repair = layers[order[2]], Repair(1e-6)
    found = eliminate(order[2:], layers, point, repair=repair)
    assert found is not None
    assert isinstance(layer, SectorLayer)
    plain = first_layer_square(found, order[2], layer, point, repair)
    coarse = lambda operations: 1e9 * operations * 2.0**-53  # noqa: E731
    monkeypatch.setattr(first_layer, "gamma", coarse)
    assert plain * (1 + 1e-5) < first_layer_square(found, order[2], layer, point, repair)


def test_only_a_wide_rectifier_on_the_only_map_of_the_input_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Skips(nn.Module):
        """Reads its input twice."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.b(x + torch.relu(self.a(x)))
            return answer

    def taken(model: nn.Module, *shape: int) -> bool:
        order = network(model, *shape).ordered()
        return first_layer.first_layer(order, increments(order)) is not None

    assert not taken(convolutional(), 2, 6, 6)
    monkeypatch.setattr(first_layer, "NARROW", 4)
    assert taken(convolutional(), 2, 6, 6)
    assert not taken(convolutional(nn.LeakyReLU(0.1)), 2, 6, 6)
    assert not taken(Skips(), 6)
    pooled = nn.Sequential(nn.MaxPool2d(2), *convolutional())
    order = network(nn.Sequential(*pooled[:3]), 2, 6, 6).ordered()
    assert any(isinstance(node.piece, Opaque) for node in order)
    assert first_layer.first_layer(order, increments(order)) is None


def test_the_default_bound_of_a_wide_network_is_the_one_without_the_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 300), nn.ReLU(), nn.Linear(300, 8), nn.ReLU(), nn.Linear(8, 3))
    found = lipschitz(model, (12,)).whole
    monkeypatch.setattr(first_layer, "NARROW", 300)
    plain = lipschitz(model, (12,)).whole
    assert plain.upper == pytest.approx(found.upper, rel=2e-4)
    assert found.reachable <= found.upper * (1 + 1e-9)


def test_a_gram_matrix_in_blocks_is_the_product() -> None:
    rows = torch.randn(2, 7, 600, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(gram(rows), rows.mH @ rows, rtol=0, atol=1e-12)
