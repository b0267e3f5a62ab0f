"""Networks on tori: above all attained values and the dense inequality, and equal to the latter in lossless cases."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.certify import lipschitz
from robustres.certify.blocks import front, torus_bound
from robustres.certify.blocks.elimination import Eliminated, eliminate
from robustres.certify.blocks.fixed_point import search
from robustres.certify.blocks.front import Repair
from robustres.certify.blocks.increments import windows_of_residues
from robustres.certify.blocks.network_bound import box_bound, l2_bound
from robustres.certify.blocks.torus_network import NotLaidError, TorusNetwork, on_tori
from robustres.certify.graph.network import Node
from robustres.certify.maps.nonlinear import MaxPool
from robustres.models.constraints.activations import MaxMin
from tests.certify.one_network import network_bound


def simplified(model: nn.Module, *shape: int) -> Node:
    """The simplified network of a module."""
    report = lipschitz(model, shape, joint=False, lower_steps=0)
    assert report.analysis is not None
    return report.analysis.output


def bound(network: TorusNetwork, steps: int = 150, **settings: Any) -> float:
    """Search and proof."""
    point = search(network.order, network.layers, steps=steps, copies=4)
    return torus_bound.torus_bound(network, point, **settings)


def attained(model: nn.Module, *shape: int, count: int = 24) -> float:
    """The largest Jacobian norm and quotient among random inputs."""
    x = 2 * torch.randn(count, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x).transpose(0, 1).flatten(2)
    near = x + 10 ** torch.linspace(-3, 1, count, dtype=torch.float64).reshape(-1, 1, 1, 1) * torch.randn_like(x)
    with torch.no_grad():
        quotient = (model(near) - model(x)).norm(dim=1) / (near - x).flatten(1).norm(dim=1)
    return max(float(torch.linalg.matrix_norm(jacobian, 2).max()), float(quotient.max()))


class Stages(nn.Module):
    """Residual blocks, the second with stride 2, before or after the activation."""

    def __init__(self, activation: nn.Module, before: bool, channels: int = 4) -> None:
        super().__init__()
        self.activation, self.before = activation, before
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.scale = nn.BatchNorm2d(channels)
        self.a = nn.ModuleList([nn.Conv2d(channels, channels, 3, s, padding=1) for s in (1, 2)])
        self.b = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1, groups=g) for g in (1, 2)])
        self.shortcut = nn.Conv2d(channels, channels, 1, 2)
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for a, b, shortcut in zip(self.a, self.b, (nn.Identity(), self.shortcut), strict=True):
            z = self.activation(self.scale(x)) if self.before else x
            y = shortcut(x) + b(self.activation(a(z)))
            x = y if self.before else self.activation(y)
        return self.head(x.mean((2, 3)))


def head(channels: int, side: int, kind: str) -> list[nn.Module]:
    """From the last image to three outputs."""
    if kind == "mean":
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]
    if kind == "flat":
        return [nn.Flatten(), nn.Linear(channels * side * side, 3)]
    return [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels * (side // 2) ** 2, 5), nn.ReLU(), nn.Linear(5, 3)]


def chain(kind: str, activation: Callable[[], nn.Module], padding: str = "zeros") -> nn.Sequential:
    """Two convolutions, pooling of the largest, another convolution."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode=padding), activation(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=padding), activation(),
        nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, padding=1, padding_mode=padding), activation(), *head(4, 3, kind),
    )  # fmt: skip


def up(activation: Callable[[], nn.Module]) -> nn.Sequential:
    """A convolution of stride 2 and a transposed one."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, padding=1), activation(), nn.ConvTranspose2d(4, 4, 4, 2, padding=1), activation(),
        nn.Conv2d(4, 4, 3, padding=1), activation(), *head(4, 6, "flat"),
    )  # fmt: skip


ACTIVATIONS = [nn.ReLU, lambda: nn.LeakyReLU(0.2), nn.Tanh, MaxMin, lambda: nn.PReLU(init=-0.5)]


KINDS = ("kind", "place", "widest")


@pytest.mark.parametrize(KINDS, [("before", 0, 16), ("after", 3, 16), ("flat", 1, 1000), ("up", 0, 16), ("up", 4, 64)])
def test_no_jacobian_no_pair_and_no_dense_inequality_exceeds_the_bound(kind: str, place: int, widest: int) -> None:
    _no_bound_is_below_what_is_attained(0, place, widest, kind, 30)


def test_a_network_that_is_steepest_for_constant_images_is_bounded_by_its_exact_norm() -> None:
    """Positive weights and images: the network is linear there, and its mean over the image is at frequency 0."""
    torch.manual_seed(0)
    model = chain("mean", nn.ReLU, "circular")
    del model[4]  # the pooling
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    x = torch.ones(1, 2, 6, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model.double()(v).flatten(), x).flatten(1)
    exact = float(torch.linalg.matrix_norm(jacobian, 2))
    upper = bound(on_tori(simplified(model, 2, 6, 6), widest=16))
    assert exact <= upper <= 1.01 * exact


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 10**6), place=st.integers(0, len(ACTIVATIONS) - 1), widest=st.sampled_from([16, 1000]),
    kind=st.sampled_from(["before", "after", "mean", "flat", "deep", "up"]), steps=st.sampled_from([1, 60]),
)  # fmt: skip
def test_none_exceeds_it_for_many_networks(seed: int, place: int, widest: int, kind: str, steps: int) -> None:
    _no_bound_is_below_what_is_attained(seed, place, widest, kind, steps)


def _no_bound_is_below_what_is_attained(seed: int, place: int, widest: int, kind: str, steps: int) -> None:
    torch.manual_seed(seed)
    activation = ACTIVATIONS[place]
    if kind in ("before", "after"):
        model: nn.Module = Stages(activation(), kind == "before")
    else:
        model = up(activation) if kind == "up" else chain(kind, activation)
    model = model.double().eval()
    shape = (2, 6, 6)
    output = simplified(model, *shape)
    upper = bound(on_tori(output, widest=widest), steps)
    dense = network_bound(output, sharing="channel", steps=60).reachable
    assert max(attained(model, *shape), dense * (1 - 1e-9)) <= upper < float("inf")


@pytest.mark.parametrize(("padding", "inner"), [("zeros", MaxMin()), ("circular", nn.LeakyReLU(0.1))])
def test_the_bound_by_frequency_equals_that_of_the_same_inequality_at_once(padding: str, inner: nn.Module) -> None:
    """On the torus itself, in one region, with the same multipliers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode=padding), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1, padding_mode=padding),
        inner, nn.Conv2d(6, 4, 3, padding=1, padding_mode=padding), nn.ReLU(), *head(4, 4, "mean"),
    ).double()  # fmt: skip
    output = simplified(model, 2, 8, 8)
    network = on_tori(output, widest=1000)
    assert (len(network.regions), network.constant) == (1, True)
    assert network.regions[0].torus.points == ((4, 4) if padding == "circular" else (5, 5))
    point = search(network.order, network.layers, copies=4, steps=200)
    raised = Repair(2e-2, 0.0)  # admissible without mixing in others, which would differ
    dense = eliminate(network.order, network.layers, point, repair=raised)
    assert dense is not None
    upper = torus_bound.torus_bound(network, point, repair=raised)
    assert upper == pytest.approx(l2_bound(dense), rel=1e-6)
    assert point.value <= upper <= point.value * 1.01
    channels = network_bound(output, sharing="channel", steps=300)
    if padding == "circular":
        assert upper == pytest.approx(channels.reachable, rel=5e-2)
    else:
        assert channels.reachable <= upper <= 2 * channels.upper


def test_rows_that_overflow_or_underflow_prove_nothing_false() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), *head(4, 3, "flat"))
    network = on_tori(simplified(model, 2, 3, 3), widest=64)
    point = search(network.order, network.layers, steps=20, copies=4)
    (region,), one = network.regions, torch.ones(1, dtype=torch.float64)
    for scale, enough in ((math.nan, math.inf), (1e300, math.inf), (1e-200, 1e-280)):
        rows = torch.diag(torch.full((4,), scale, dtype=torch.complex128))
        start = partial(lambda rows, space: (rows.expand(len(space.frequencies), -1, -1), 0.0), rows)
        assert torus_bound.region_square(region, network.layers, point, start, root=one, repair=Repair()) >= enough
    tiny = Eliminated(1e-70 * torch.eye(2, dtype=torch.float64)[None], 0.0, 1.0)
    assert box_bound(tiny, 1e200 * one.expand(2), one.expand(2)) >= 1.414e-70


@pytest.mark.parametrize("transposed", [False, True])
def test_a_kernel_smaller_than_its_padding_is_laid_on_a_torus(transposed: bool) -> None:
    torch.manual_seed(0)
    last = nn.ConvTranspose2d(3, 3, 1, padding=1) if transposed else nn.Conv2d(3, 3, 1, padding=1)
    linear = (nn.Conv2d(2, 3, 1, padding=2), nn.Conv2d(3, 3, (1, 2), padding=(1, 3), dilation=(1, 2)), last)
    model = nn.Sequential(*linear, nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), *head(3, 7, "mean")).double()
    network = on_tori(simplified(model, 2, 4, 5), widest=64)
    assert attained(model, 2, 4, 5) <= bound(network, repair=Repair(1e-2, 1e-2)) < 100


def test_pairs_of_classes_start_from_their_rows() -> None:
    torch.manual_seed(1)
    model = chain("mean", nn.ReLU).double()
    network = on_tori(simplified(model, 2, 6, 6), widest=64)
    rows = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    point = search(network.order, network.layers, rows=rows, copies=4, steps=100)
    pair = torus_bound.torus_bound(network, point, rows=rows)
    x = 2 * torch.randn(24, 2, 6, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x).transpose(0, 1).flatten(2)
    assert float((rows @ jacobian).norm(dim=-1).max()) <= pair <= 2**0.5 * 1.01 * bound(network)


def test_multipliers_that_are_wrong_prove_nothing_false() -> None:
    torch.manual_seed(2)
    model = Stages(nn.ReLU(), False).double().eval()
    network = on_tori(simplified(model, 2, 6, 6), widest=4)
    assert len(network.regions) > 1
    point = search(network.order, network.layers, copies=4, steps=20)
    least = attained(model, 2, 6, 6)
    for spread in (1e-6, 1e-2, 1e2):
        draw = {node: t * (1 + spread * torch.rand_like(t)) ** 2 for node, t in point.multipliers.items()}
        for multipliers in (draw, {node: 1e-9 * t for node, t in draw.items()}):
            weights = replace(point, multipliers=multipliers)
            for repair in (Repair(0.0, 0.0), Repair()):
                assert torus_bound.torus_bound(network, weights, repair=repair) >= least


@pytest.mark.parametrize("widest", [8, 64])
def test_the_proof_through_maximum_pooling_attains_the_value_of_the_search(widest: int) -> None:
    """With a constant for the whole pooling, and with the windows of each pixel counted, which is tighter."""
    torch.manual_seed(6)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        *head(4, 4, "mean"),
    ).double()  # fmt: skip
    network = on_tori(simplified(model, 2, 8, 8), widest=widest)
    assert network.regions[1].multiplicity[network.regions[1].order[-1]] == ((1, 1) if widest == 8 else (2, 2))
    values = []
    for chosen in (network, on_tori(simplified(model, 2, 8, 8), widest=8)):
        point = search(chosen.order, chosen.layers, copies=4, steps=150)
        upper = torus_bound.torus_bound(chosen, point, repair=Repair(1e-3, 1e-3))
        assert attained(model, 2, 8, 8) <= upper
        assert point.value * (1 - 1e-6) <= upper <= 1.005 * point.value
        values.append(point.value)
    assert values[0] <= (1 if widest == 8 else 0.95) * values[1]


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"), [(8, 3, 2, 1), (7, 3, 2, 0), (9, 4, 3, 1), (6, 2, 2, 0)]
)
def test_the_windows_of_a_residue_bound_a_pooling_and_a_single_pixel_attains_them(
    size: int, window: int, stride: int, padding: int
) -> None:
    pool = nn.MaxPool2d(window, stride, padding)
    report = lipschitz(pool, (1, size, size), joint=False, lower_steps=0)
    assert report.analysis is not None
    piece = report.analysis.output.piece
    assert isinstance(piece, MaxPool)
    counts = windows_of_residues(piece.windows, (1, size, size))
    places = torch.arange(size) % counts.shape[0]
    weight = counts[places][:, places]
    draw = torch.Generator().manual_seed(0)
    x, change = torch.randn(2, 200, 1, size, size, generator=draw, dtype=torch.float64)
    moved = (pool(x + change) - pool(x)).square().sum((1, 2, 3))
    assert bool((moved <= (weight * change.square()).sum((1, 2, 3)) * (1 + 1e-12)).all())
    single = torch.eye(size * size, dtype=torch.float64).reshape(-1, 1, size, size)
    windows = pool(single).square().sum((1, 2, 3)).reshape(size, size)
    for first in range(counts.shape[0]):
        for second in range(counts.shape[1]):
            of_residue = windows[first :: counts.shape[0], second :: counts.shape[1]]
            assert float(of_residue.max()) == float(counts[first, second])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Flatten()), "shift"),
        (nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()), "output is an image"),
        (nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten()), "couples"),
    ],
)
def test_networks_without_a_form_on_tori_are_refused_with_the_reason(model: nn.Module, said: str) -> None:
    with pytest.raises(NotLaidError, match=said):
        on_tori(simplified(model, 2, 6, 6), widest=6)


def test_rounding_errors_are_included(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a unit roundoff a million times as large the bound is larger; the cost of the true one is negligible."""
    torch.manual_seed(3)
    network = on_tori(simplified(chain("flat", nn.ReLU).double(), 2, 6, 6), widest=64)
    point = search(network.order, network.layers, copies=4, steps=60)
    plain = torus_bound.torus_bound(network, point)
    coarse = lambda operations: 1e6 * operations * 2.0**-53  # noqa: E731
    for module in (front, torus_bound):
        monkeypatch.setattr(module, "gamma", coarse)
    assert plain * (1 + 1e-9) < torus_bound.torus_bound(network, point)


def test_frequencies_in_parts_share_their_multipliers_and_give_nearly_the_same_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(4)
    model = Stages(nn.ReLU(), False).double().eval()
    network = on_tori(simplified(model, 2, 8, 8), widest=1000)
    point = search(network.order, network.layers, copies=4, steps=150)
    repair = Repair(1e-2, 1e-3)
    together = torus_bound.torus_bound(network, point, repair=repair)
    monkeypatch.setattr(torus_bound, "PART_BYTES", 1e5)
    assert len(torus_bound._parts(network.regions[0])) > 2
    apart = torus_bound.torus_bound(network, point, repair=repair)
    assert apart == pytest.approx(together, rel=1e-2)
    assert attained(model, 2, 8, 8) <= apart
