"""The whole network's bound in reports and radii: the smallest of all, with what was skipped and why, and pairs."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from robustres.certify import Bound, Guarantee, NetworkCertificate, certify, certify_best, lipschitz
from robustres.certify.blocks import network_forms
from robustres.certify.bounds.report import PRODUCT
from robustres.certify.bounds.whole_network import METHOD
from robustres.certify.radii.pair_bounds import PairBounds
from robustres.certify.radii.smoothing import RandomisedSmoothing
from robustres.errors import InputError
from robustres.models.constraints.activations import MaxMin


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


class Kept(dict[str, str]):
    """A memory of bounds."""

    def load(self, key: str) -> str | None:
        return self.get(key)

    def save(self, key: str, text: str) -> None:
        self[key] = text


def test_the_report_takes_the_smaller_bound_says_which_and_remembers_it() -> None:
    model, memory = small_classifier(), Kept()
    report = lipschitz(model, (1, 6, 6), effort=0.5, store=memory)
    assert report.method == METHOD
    assert report.lower <= report.whole.upper == report.upper == report.l2_upper < 0.8 * report.product
    assert report.whole.reachable <= report.upper <= 1.001 * report.whole.reachable
    assert "layers eliminated" in str(report)
    again = lipschitz(model, (1, 6, 6), effort=0.5, store=memory)
    assert (again.upper, again.whole) == (report.upper, report.whole)
    assert lipschitz(model, (1, 6, 6), norm="linf").method == PRODUCT


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), "the network is linear"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4)), "nominal core"),
    ],
)
def test_what_was_skipped_says_why(model: nn.Module, said: str) -> None:
    report = lipschitz(model, (1, 6, 6), effort=1e-4)
    assert said in report.whole.skipped
    assert report.upper == report.product
    assert report.method == PRODUCT
    assert said in str(report)
    assert "not requested" in lipschitz(model, (1, 6, 6), joint=False).whole.skipped


def test_a_pair_of_classes_is_bounded_above_its_slopes_and_far_below_all_logits_together() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    report = lipschitz(model, (6,), effort=0.5)
    assert report.analysis is not None
    x = 3 * torch.randn(200, 6, dtype=torch.float64)
    jacobians = torch.autograd.functional.jacobian(lambda v: model(v).sum(0), x).transpose(0, 1)
    for i, j in ((0, 1), (0, 2), (2, 1)):
        pair = report.analysis.whole.pair(i, j)
        assert float((jacobians[:, i] - jacobians[:, j]).norm(dim=1).max()) <= pair <= 2**0.5 * report.upper * 1.001
    refined = PairBounds(torch.full((3, 3), math.inf, dtype=torch.float64), report.analysis.whole, math.inf)
    assert refined.refine_all()
    assert float(refined(2)[1]) == float(refined(1)[2]) == report.analysis.whole.pair(2, 1)


def test_a_pair_that_can_hardly_be_improved_keeps_its_bound_without_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    report = lipschitz(model, (6,), effort=0.5)
    assert report.analysis is not None
    whole = report.analysis.whole
    proved = whole.pair(0, 1)
    whole.pairs.clear()
    with monkeypatch.context() as patched:
        patched.setattr(network_forms.Form, "prove", None)
        assert whole.pair(0, 1, known=1.005 * proved) == 1.005 * proved
    assert whole.pair(0, 1, known=1.05 * proved) == proved == whole.pair(1, 0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_best_is_the_largest_radius_of_each_sample_with_its_source(norm: Any) -> None:
    model, x = small_classifier(), torch.rand(12, 1, 6, 6)
    report = lipschitz(model, (1, 6, 6), effort=0.5)
    plain = certify(model, x, norm=norm, report=report)
    best = certify(model, x, norm=norm, report=report, certificate="best")
    assert bool((best.radius >= plain.radius).all())
    assert "layers eliminated, l2" in best.source
    assert len(best.source) == len(x)
    assert str(best.guarantee) == "deterministic"
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
    monkeypatch.setattr(network_forms, "WIDEST", 10)
    monkeypatch.setattr(network_forms, "COUPLED", (1,))
    report = lipschitz(small_classifier(), (1, 6, 6))
    assert "too wide" in report.whole.skipped
    wide = certify(small_classifier(), x, certificate="best", report=report)
    assert set(wide.source) <= {"pairwise head, l2", "pairwise head, linf row sums"}
    with pytest.raises(InputError, match="certificate must be"):
        certify(pooled, x, certificate="other")  # type: ignore[arg-type]


def test_convolutions_too_wide_for_one_matrix_are_eliminated_on_tori_and_their_pairs_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    report = lipschitz(model, (1, 48, 48), effort=1.0)
    assert report.whole.shares == "channel"
    assert report.method == METHOD
    assert report.lower <= report.whole.upper < 0.9 * report.product
    assert report.whole.reachable <= report.whole.upper <= 1.01 * report.whole.reachable
    assert "each channel" in str(report)
    assert report.analysis is not None
    assert report.analysis.whole.pair(0, 1) <= 2**0.5 * 1.01 * report.upper


def test_why_convolutions_are_not_eliminated_is_said_of_both_forms() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 48 * 48, 3))
    skipped = lipschitz(model, (1, 48, 48), effort=1e-3).whole.skipped
    assert "too wide" in skipped
    assert "on tori, it takes about" in skipped


def test_estimates_from_images_climb_and_stay_below_the_bound() -> None:
    torch.manual_seed(0)
    layers = [part for _ in range(4) for part in (nn.Linear(12, 12), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *layers, nn.Linear(12, 4))
    images = torch.rand(6, 3, 2, 2)
    report = lipschitz(model, (3, 2, 2), images=images, effort=0.5)
    x = images.double()
    jacobian = torch.autograd.functional.jacobian(lambda v: model.double()(v).sum(0), x).transpose(0, 1).flatten(2)
    at_images = float(torch.linalg.matrix_norm(jacobian, 2).max())
    assert 1.2 * at_images < report.lower <= report.upper
    assert report.lower == lipschitz(model, (3, 2, 2), images=images, effort=0.5).lower


def test_sorted_channels_before_maximum_pooling_are_eliminated() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), MaxMin(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )  # fmt: skip
    report = lipschitz(model, (1, 6, 6), effort=0.5)
    assert report.lower <= report.whole.upper < float("inf")
