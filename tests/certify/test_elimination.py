"""Whole networks in one inequality: above all attained values, exact in known cases, at the optimum of a solver."""

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.certify import lipschitz
from robustres.certify.blocks import front
from robustres.certify.blocks.elimination import eliminate
from robustres.certify.blocks.fixed_point import search
from robustres.certify.blocks.increments import increments
from robustres.certify.blocks.joint_bound import joint_bound
from robustres.certify.blocks.network_bound import l2_bound, proved_bound
from robustres.certify.graph.network import Node
from robustres.certify.maps.linear_map import Dense, Identity
from robustres.models.constraints.activations import MaxMin
from tests.certify.one_network import network_bound


def network(model: nn.Module, *shape: int) -> Node:
    """The simplified network of a module."""
    report = lipschitz(model, shape, joint=False, lower_steps=0)
    assert report.analysis is not None
    return report.analysis.output


class Residual(nn.Module):
    """relu(x + B relu(A x)) blocks between two dense layers."""

    def __init__(self, width: int, blocks: int, classes: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(width, width), nn.Linear(width, classes)
        self.a = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.b = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.activation = activation or nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        for a, b in zip(self.a, self.b, strict=True):
            x = self.activation(x + b(self.activation(a(x))))
        return self.head(x)


def solver_optimum(model: Residual) -> float:
    """The LipSDP bound of the network by a semidefinite solver."""
    width, blocks = model.first.in_features, len(model.a)
    total = width * (1 + 2 * blocks)
    eye = np.eye(total)
    x, place, z, v = model.first.weight.detach().numpy() @ eye[:width], width, [], []
    for a, b in zip(model.a, model.b, strict=True):
        for image in (lambda h, a=a: a.weight.detach().numpy() @ h, None):
            z.append(image(x) if image is not None else x + b.weight.detach().numpy() @ v[-1])
            v.append(eye[place : place + width])
            place += width
        x = v[-1]
    rows = model.head.weight.detach().numpy() @ x
    t, bound = cp.Variable(total - width, nonneg=True), cp.Variable()
    change = np.diag([1.0] * width + [0.0] * (total - width))
    cross = np.vstack(v).T @ cp.diag(t) @ np.vstack(z)
    form = bound * change - rows.T @ rows - (cross + cross.T) + 2 * np.vstack(v).T @ cp.diag(t) @ np.vstack(v)
    cp.Problem(cp.Minimize(bound), [0.5 * (form + form.T) >> 0]).solve(solver=cp.CLARABEL)
    return float(bound.value) ** 0.5


@pytest.mark.parametrize(("width", "blocks"), [(4, 1), (5, 2), (6, 3)])
def test_the_fixed_point_and_its_proof_agree_with_a_semidefinite_solver(width: int, blocks: int) -> None:
    torch.manual_seed(width)
    model = Residual(width, blocks, 3).double()
    optimum = solver_optimum(model)
    found = network_bound(network(model, width), steps=1000)
    assert found.reachable == pytest.approx(optimum, rel=1e-3)
    assert optimum * (1 - 1e-6) <= found.upper <= optimum * (1 + 2e-3)


class Tangled(nn.Module):
    """Values with several consumers, a concatenation, a maximum, and an activation that feeds two branches."""

    def __init__(self, width: int, activation: nn.Module, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(5))
        self.activation, self.head = activation, nn.Linear(3 * width, classes)

    def forward(self, x: Tensor) -> Any:
        a, b, c, d, e = self.layers
        inner = self.activation(a(x))
        y = x + b(inner) + inner
        side = torch.maximum(c(y), inner)
        z = self.activation(y - d(side))
        return self.head(torch.cat([z, self.activation(e(z)), x + side], dim=1))


ACTIVATIONS = [nn.ReLU(), nn.LeakyReLU(0.3), nn.Tanh(), nn.SiLU(), MaxMin(), nn.PReLU(init=-0.5), nn.Softplus()]


@settings(deadline=None, max_examples=6)
@given(
    seed=st.integers(0, 10**6), place=st.integers(0, len(ACTIVATIONS) - 1), width=st.sampled_from([2, 4, 6]),
    steps=st.sampled_from([1, 30]), sharing=st.sampled_from(["neuron", "channel", "layer"]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)  # fmt: skip
def test_no_jacobian_and_no_pair_of_inputs_exceeds_the_bounds(
    seed: int, place: int, width: int, steps: int, sharing: Any, scale: float
) -> None:
    torch.manual_seed(seed)
    model = Tangled(width, ACTIVATIONS[place], 3).double()
    with torch.no_grad():
        for layer in model.layers:
            layer.weight *= scale
    output = network(model, width)
    x = 2 * torch.randn(64, width, dtype=torch.float64)
    jacobians = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x).transpose(0, 1).detach()
    near = x + 10 ** torch.linspace(-3, 1, 64, dtype=torch.float64)[:, None] * torch.randn_like(x)
    change, lengths = (model(near) - model(x)).detach(), (near - x).norm(dim=1)
    for rows in (None, torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])):
        upper = network_bound(output, rows=rows, steps=steps, sharing=sharing).upper
        seen = jacobians if rows is None else rows.double() @ jacobians
        moved = change if rows is None else change @ rows.double().T
        assert float(torch.linalg.matrix_norm(seen, 2).max()) <= upper
        assert bool((moved.norm(dim=1) <= upper * lengths).all())
        assert upper < float("inf")


def test_the_bound_of_a_linear_network_is_its_norm_and_that_of_orthogonal_layers_is_exact() -> None:
    torch.manual_seed(0)
    one, two = nn.Linear(7, 5).double(), nn.Linear(5, 4).double()
    exact = float(torch.linalg.matrix_norm((two.weight @ one.weight).detach(), 2))
    assert exact <= network_bound(network(nn.Sequential(one, two), 7)).upper <= exact * (1 + 1e-9)
    layers: list[nn.Module] = []
    for activation in (nn.ReLU(), MaxMin(), nn.LeakyReLU(-1.0), nn.ReLU(), MaxMin()):
        layer = nn.Linear(6, 6)
        nn.init.orthogonal_(layer.weight)
        layers += [layer, activation]
    assert 1 - 1e-5 <= network_bound(network(nn.Sequential(*layers), 6), steps=400).upper <= 1.003


@pytest.mark.parametrize("width", [3, 12])
def test_one_residual_block_agrees_with_the_joint_bound(width: int) -> None:
    torch.manual_seed(width)
    inner, outer = nn.Linear(width, 2 * width).double(), nn.Linear(2 * width, width).double()

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = inner, outer

        def forward(self, x: Tensor) -> Any:
            return x + 3 * self.outer(torch.relu(self.inner(x)))

    joint = joint_bound(Identity((width,)), Dense(inner.weight.detach()), Dense(3 * outer.weight.detach()), effort=1)
    found = network_bound(network(Block(), width), steps=400)
    assert joint.lower * (1 - 1e-6) <= found.upper <= joint.upper * (1 + 2e-3)


def small_convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1), MaxMin(), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(6, 3),
    ).double()  # fmt: skip


def test_convolutions_pooling_and_sorts_in_both_precisions_lie_between_the_attained_value_and_the_product() -> None:
    model = small_convolutions()
    report = lipschitz(model, (1, 8, 8), effort=0.2)
    assert report.analysis is not None
    output = report.analysis.output
    found = [network_bound(output, dtype=dtype, steps=100) for dtype in (torch.float32, torch.float64)]
    x = torch.rand(32, 1, 8, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x).transpose(0, 1).flatten(2)
    attained = float(torch.linalg.matrix_norm(jacobian, 2).max())
    for bound in found:
        assert attained <= bound.upper < report.product
        assert bound.upper <= 1.01 * bound.reachable


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(["l2", "linf"]))
def test_slopes_around_a_centre_bound_every_change_from_it(seed: int, norm: str) -> None:
    """Secants from the centre in a ball, from bounds of the pre-activations that are exact enough to be sampled."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    output = network(model, 5)
    centre, eps = torch.randn(5, dtype=torch.float64), 0.3
    reach = eps if norm == "l2" else eps * 5**0.5
    slopes: dict[Node, tuple[Tensor, Tensor]] = {}
    constant, h = 1.0, centre
    for node in output.ordered():
        if node in increments([node]):
            layer = model[2 * len(slopes)]
            constant *= float(torch.linalg.matrix_norm(layer.weight.detach(), 2))
            z = layer(h).detach()
            low, high = z - constant * reach, z + constant * reach
            low_slope = torch.where(low >= 0, 1.0, torch.where(z > 0, z / (z - low), 0.0))
            high_slope = torch.where(high <= 0, 0.0, torch.where(z > 0, 1.0, (high / (high - z)).clamp(0, 1)))
            slopes[node] = low_slope, high_slope
            h = z.relu()
    rows = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    box = torch.full((5,), eps, dtype=torch.float64) if norm == "linf" else None
    local = network_bound(output, rows=rows, slopes=slopes, box=box, steps=200)
    everywhere = network_bound(output, rows=rows, box=box, steps=200)
    assert local.upper <= everywhere.upper * (1 + 2e-3)
    change = torch.randn(20000, 5, dtype=torch.float64)
    change = eps * (change.sign() if norm == "linf" else change / change.norm(dim=1, keepdim=True))
    change = change * torch.rand(20000, 1, dtype=torch.float64) ** 0.2
    moved = ((model(centre + change) - model(centre)) @ rows.T).detach().norm(dim=1)
    largest = (moved / change.norm(dim=1)).max() if norm == "l2" else moved.max()
    assert float(largest) <= local.upper


def test_inadmissible_multipliers_prove_nothing_false() -> None:
    """Arbitrary multipliers: too small, missing, for one layer only, with an extreme spread."""
    torch.manual_seed(1)
    model = Residual(5, 2, 3).double()
    output = network(model, 5)
    order, layers = output.ordered(), increments(output.ordered())
    best = search(order, layers, steps=300)
    x = 3 * torch.randn(200, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x).transpose(0, 1)
    attained = float(torch.linalg.matrix_norm(jacobian, 2).max())
    spread = {node: 10 ** (12 * torch.rand_like(t) - 6) for node, t in best.multipliers.items()}
    for chosen in (
        {},
        {n: 1e-6 * t for n, t in best.multipliers.items()},
        spread,
        {n: 0 * t for n, t in spread.items()},
    ):
        found = eliminate(order, layers, replace(best, multipliers=chosen, sizes=best.sizes if chosen else {}))
        assert found is None or l2_bound(found) >= attained


def test_the_slack_for_rounding_is_included_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a unit roundoff a million times as large the bound is larger; the cost of the true one is negligible."""
    model = small_convolutions()
    output = network(model, 1, 8, 8)
    order, layers = output.ordered(), increments(output.ordered())
    point = search(order, layers, steps=100)
    plain = proved_bound(order, layers, point)
    found = eliminate(order, layers, point)
    assert found is not None
    assert 0 < found.slack < 1e-9 * plain**2
    assert found.factor < 1 + 1e-7
    coarse = lambda operations: 1e6 * operations * 2.0**-53  # noqa: E731
    monkeypatch.setattr(front, "gamma", coarse)
    rounded = eliminate(order, layers, point)
    assert rounded is None or rounded.slack > found.slack
