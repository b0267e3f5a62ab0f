"""The whole network in one inequality: above everything that is attained, and never above the product where it wins."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.certify import Bound, Guarantee, NetworkCertificate, certify, certify_best, lipschitz
from robustres.certify.bounds import whole_network as whole_network_module
from robustres.certify.radii.smoothing import RandomisedSmoothing
from robustres.errors import InputError
from robustres.models.constraints.activations import MaxMin


class Net(nn.Module):
    """Residual blocks of two dense layers, one inside another, a concatenation and a head."""

    def __init__(self, width: int, activation: nn.Module, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.activation, self.head = activation, nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Any:
        x = x.flatten(1)
        a, b, c, d = self.layers
        inner = a(x) + b(self.activation(x))
        x = x + c(self.activation(inner))
        return self.head(torch.cat([x, d(self.activation(x))], dim=1))


ACTIVATIONS = [nn.ReLU(), nn.LeakyReLU(0.3), nn.Tanh(), nn.SiLU(), MaxMin(), nn.PReLU(init=-0.5)]


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 10**6), place=st.integers(0, len(ACTIVATIONS) - 1), width=st.sampled_from([2, 4, 6]))
def test_no_jacobian_and_no_pair_of_inputs_exceeds_the_bounds(seed: int, place: int, width: int) -> None:
    torch.manual_seed(seed)
    model = Net(width, ACTIVATIONS[place], 3).double()
    report = lipschitz(model, (width,), effort=0.03, lower_steps=0)
    assert report.analysis is not None
    whole = report.analysis.whole
    assert whole is not None
    x = 2 * torch.randn(64, width, dtype=torch.float64)
    jacobians = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x).transpose(0, 1).detach()
    assert float(torch.linalg.matrix_norm(jacobians, 2).max()) <= whole.upper
    near = x + 10 ** torch.linspace(-3, 1, 64, dtype=torch.float64)[:, None] * torch.randn_like(x)
    change = (model(near) - model(x)).detach()
    lengths = (near - x).norm(dim=1)
    for i in range(3):
        for j in range(3):
            assert float((jacobians[:, i] - jacobians[:, j]).norm(dim=1).max()) <= float(whole.pairs[i, j])
            assert bool(((change[:, i] - change[:, j]).abs() <= whole.pairs[i, j] * lengths).all())


def test_a_linear_chain_of_known_norm_is_bounded_by_it() -> None:
    """x -> W2 |W1 x|: with orthogonal W1 and W2 = c W1^T the constant is c, attained by every sign pattern."""
    orthogonal = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    first.weight.data, second.weight.data = orthogonal, 3 * orthogonal.T.contiguous()

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor) -> Any:
            return self.second(self.first(x).abs())

    report = lipschitz(Folded(), (6,), effort=0.2)
    assert report.analysis is not None
    whole = report.analysis.whole
    assert whole is not None
    assert 3 <= whole.upper <= 3 * (1 + 1e-4)


def small_classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 3, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_best_is_the_largest_radius_of_each_sample_with_its_source(norm: Any) -> None:
    model, x = small_classifier(), torch.rand(12, 1, 6, 6)
    report = lipschitz(model, (1, 6, 6), effort=0.5)
    plain = certify(model, x, norm=norm, report=report)
    best = certify(model, x, norm=norm, report=report, certificate="best")
    assert bool((best.radius >= plain.radius).all())
    assert "whole network jointly, l2" in best.source
    assert len(best.source) == len(x)
    assert str(best.guarantee) == "deterministic"
    assert report.analysis is not None
    assert report.analysis.whole is not None
    assert report.analysis.whole.upper < 0.7 * report.upper
    (column,) = certify_best(
        model, x, [NetworkCertificate(norm, "lipschitz", report), NetworkCertificate(norm, "best", report)]
    )
    assert torch.equal(column.radius, best.radius)
    assert set(column.source) >= set(best.source)


def test_best_keeps_radii_of_the_network_apart_from_votes_and_says_when_bounds_are_probabilistic() -> None:
    model, x = small_classifier(), torch.rand(3, 1, 6, 6)
    vote = RandomisedSmoothing(0.5, selection_samples=10, estimation_samples=100)
    network, smoothed = certify_best(model, x, [NetworkCertificate(), vote])
    assert str(network.guarantee) == "deterministic"
    assert set(smoothed.source) == {vote.name}

    class Measured(nn.ReLU):
        """States a bound that holds with a probability."""

        def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
            return Bound(0.0, 1.0, "by sampling", Guarantee(1e-3))

    model = nn.Sequential(nn.Flatten(), Measured(), nn.Linear(36, 4))
    report = lipschitz(model, (1, 6, 6), norm="linf")
    for choice in ("lipschitz", "best"):
        found = certify(model, x, report=report, certificate=choice).guarantee
        assert found.failure_probability == pytest.approx(1e-3)


def test_what_is_too_wide_or_has_no_inequality_keeps_the_other_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    x = torch.rand(4, 1, 6, 6)
    best = certify(pooled, x, certificate="best")
    assert torch.equal(best.radius, certify(pooled, x).radius.maximum(best.radius))
    assert set(best.source) <= {"pairwise head, l2", "pairwise head, linf row sums"}
    monkeypatch.setattr(whole_network_module, "WIDTH", 10)
    assert "whole network jointly, l2" not in certify(small_classifier(), x, certificate="best").source
    with pytest.raises(InputError, match="lipschitz or best"):
        certify(pooled, x, certificate="local")  # type: ignore[arg-type]
