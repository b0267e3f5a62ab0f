"""Decision-based attacks, transfer from another model, and corruptions of the size of a ball."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustres.attacks import PGD, HopSkipJump, Transfer, make_attack
from robustres.attacks.methods.corruptions import Corruption
from robustres.errors import DataError, InputError
from robustres.numerics import distance
from robustres.results import AVERAGE_CASE
from robustres.threat import Norm, ThreatModel

from .conftest import Case, Recorded, make_case
from .test_linear_oracle import case

CORRUPTIONS = AVERAGE_CASE


class Decisions(nn.Module):
    """One-hot outputs, which contain no information about the distance of the boundary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return 5 * nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(x.dtype)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_boundary_is_found_by_decisions_alone(norm: Norm) -> None:
    model, x, y, exact = case(2, norm)
    result = HopSkipJump(ThreatModel(norm, math.inf), queries=1500)(Decisions(model).eval(), x[:4], y[:4])
    assert result.fooled.all()
    ratio = result.distance / exact[:4]
    assert (ratio >= 1 - 1e-5).all(), "nearer than possible"
    assert ratio.median() <= 1.6
    assert not result.gradient_evaluations.any()


@pytest.mark.parametrize("queries", [7, 60, 400])
def test_the_number_of_queries_is_not_exceeded(queries: int) -> None:
    samples = make_case(count=1)
    model = Recorded(samples.model).eval()
    result = HopSkipJump(ThreatModel("l2", math.inf), queries=queries)(model, samples.x, samples.y)
    tried = Recorded(samples.model).eval()
    HopSkipJump(ThreatModel("l2", math.inf), queries=1)(tried, samples.x, samples.y)
    overhead = sum(map(len, tried.seen)) - 1
    assert sum(map(len, model.seen)) <= queries + overhead + 1
    assert int(result.evaluations) <= queries + 3


def test_more_queries_never_find_a_farther_example(small: Case) -> None:
    few, many = (
        HopSkipJump(ThreatModel("l2", math.inf), queries=queries)(small.model, small.x[:3], small.y[:3])
        for queries in (150, 600)
    )
    assert (many.distance <= few.distance).all()


def test_random_numbers_do_not_depend_on_the_batch() -> None:
    samples = make_case(count=4, dtype=torch.float64)
    attack = HopSkipJump(ThreatModel("linf", math.inf), queries=120)
    whole = attack(*samples)
    last = replace(attack, batch_size=7)(samples.model, samples.x[2:], samples.y[2:], indices=torch.tensor([2, 3]))
    torch.testing.assert_close(whole.distance[2:], last.distance)


def test_examples_that_fool_the_surrogate_are_verified_on_the_model() -> None:
    samples = make_case(count=12)
    threat = ThreatModel("linf", 0.05)
    own = PGD(threat)(*samples)
    same = Transfer(threat, surrogate=samples.model, attack=PGD(threat))(*samples)
    assert torch.equal(same.fooled, own.fooled)
    surrogate = make_case(classes=4, count=1).model
    with torch.no_grad():
        for weight in surrogate.parameters():
            weight.mul_(1 + 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    other = Transfer(threat, surrogate=surrogate, attack=PGD(threat))(*samples)
    with torch.no_grad():
        assert torch.equal(samples.model(other.examples).argmax(dim=1) != samples.y, other.fooled)
    assert (distance(other.examples.double() - samples.x.double(), "linf") <= threat.eps).all()
    assert (other.evaluations <= 3).all()


def test_an_invalid_transfer_is_refused(small: Case) -> None:
    threat = ThreatModel("linf", 0.05)
    with pytest.raises(InputError, match="must have the threat of the transfer"):
        Transfer(threat, surrogate=small.model, attack=PGD(ThreatModel("linf", 0.1)))
    surrogate = nn.Sequential(nn.Flatten(), nn.Linear(192, 7)).eval()
    with pytest.raises(InputError, match="must return 4 logits per image"):
        Transfer(threat, surrogate=surrogate, attack=PGD(threat))(*small)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.5), ("linf", 0.05), ("l1", 5.0)])
def test_a_corruption_has_the_size_of_the_ball(name: str, norm: Norm, eps: float, small: Case) -> None:
    model = Recorded(small.model).eval()
    result = make_attack(name, ThreatModel(norm, eps))(model, small.x, small.y)
    corrupted = model.seen[-1]
    away = distance(corrupted.double() - small.x.double(), norm)
    assert (away <= eps).all()
    assert (away >= eps * 0.99).all()
    with torch.no_grad():
        assert torch.equal(small.model(corrupted).argmax(dim=1) != small.y, result.fooled)
    assert ((corrupted >= 0) & (corrupted <= 1)).all()


def test_the_average_case_is_no_worse_than_the_worst(small: Case) -> None:
    threat = ThreatModel("linf", 0.02)
    worst = make_attack("pgd", threat, steps=40)(*small).robust
    assert all(make_attack(name, threat)(*small).robust >= worst for name in CORRUPTIONS)


def test_corruptions_need_a_finite_eps_and_jpeg_needs_1_or_3_channels(small: Case) -> None:
    with pytest.raises(InputError, match="gaussian-noise needs a finite eps"):
        make_attack("gaussian-noise", ThreatModel("l2", math.inf))
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).eval()
    x = torch.rand(2, 2, 8, 8)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    with pytest.raises(DataError, match="images of 1 or 3 channels, got 2"):
        make_attack("jpeg", ThreatModel("l2", 0.1))(model, x, y)


def test_the_average_case_of_tables_is_that_of_the_attacks() -> None:
    assert {attack.kind for attack in Corruption.__subclasses__()} == set(AVERAGE_CASE)  # type: ignore[attr-defined]
