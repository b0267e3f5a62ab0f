"""Minimum-norm attacks where the nearest example is known: linear classifiers with the box, in every norm."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustres.attacks import LDN, SigmaZero, make_attack
from robustres.attacks.geometry import ball
from robustres.attacks.geometry.hyperplane import nearest_on_hyperplane
from robustres.attacks.geometry.losses import margin, smooth_margin
from robustres.certify import certify
from robustres.errors import InputError
from robustres.numerics import distance
from robustres.threat import Norm, ThreatModel

from .conftest import Case, Recorded, make_case
from .test_linear_oracle import FLOAT32, Linear


def across_the_box(classes: int) -> tuple[Linear, Tensor, Tensor]:
    """A linear model and images with many pixels near 0 or 1, so that moves hit the box."""
    model = Linear(classes).eval()
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(12, 3, 6, 6, generator=generator)
    x = torch.where(torch.rand(noise.shape, generator=generator) < 0.5, noise * 0.02, 1 - noise * 0.02)
    with torch.no_grad():
        return model, x, model(x).argmax(dim=1)


def exact_distances(model: Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The distance to the region of each other class inside the box (N, classes)."""
    logits = model(x).detach()
    found = torch.full_like(logits, torch.inf, dtype=torch.float64)
    for k in range(logits.shape[1]):
        weight = (model.layer.weight[k] - model.layer.weight[y]).detach().double()
        gap = (logits.gather(1, y[:, None]).squeeze(1) - logits[:, k]).double()
        flat = x.flatten(1).double()
        if norm == "l0":
            gains = (weight.abs() * torch.where(weight > 0, 1 - flat, flat)).sort(dim=1, descending=True).values
            needed = (gains.cumsum(dim=1) < gap[:, None]).sum(dim=1) + 1
            found[:, k] = torch.where(gains.sum(dim=1) >= gap, needed.double(), torch.inf)
        else:
            move = nearest_on_hyperplane(flat, weight, gap, norm, tolerance=1e-10)
            reached = torch.linalg.vecdot(weight, move)
            found[:, k] = torch.where(reached >= gap * (1 - 1e-8), distance(move, norm), torch.inf)
        found[y == k, k] = torch.inf
    return found


CASES: list[tuple[str, Norm, float]] = [
    ("ldn", "l2", 0.01),
    ("ldn", "linf", 0.02),
    ("ldn", "l1", 0.05),
    ("sigma-zero", "l0", 0.25),
    ("superdeepfool", "l2", 0.05),
]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("name", "norm", "tolerance"), CASES)
def test_the_nearest_example_inside_the_box_is_found(name: str, norm: Norm, tolerance: float, classes: int) -> None:
    model, x, y = across_the_box(classes)
    exact = exact_distances(model, x, y, norm).amin(dim=1)
    result = make_attack(name, ThreatModel(norm, math.inf), steps=100)(model, x, y)
    assert result.fooled.all()
    assert (result.distance >= exact * (1 - 1e-5) - FLOAT32).all(), "nearer than possible"
    assert (result.distance / exact).median() <= 1 + tolerance


@pytest.mark.parametrize(("name", "norm", "tolerance"), CASES)
def test_the_nearest_example_with_a_target_inside_the_box_is_found(name: str, norm: Norm, tolerance: float) -> None:
    model, x, y = across_the_box(2)
    exact = exact_distances(model, x, y, norm).amin(dim=1)
    result = make_attack(name, ThreatModel(norm, math.inf), steps=100)(model, x, y, targets=1 - y)
    assert torch.equal(result.prediction, 1 - y)
    assert (result.distance >= exact * (1 - 1e-5) - FLOAT32).all()
    assert (result.distance / exact).median() <= 1 + tolerance


@pytest.mark.parametrize(("name", "norm", "_"), CASES)
def test_no_more_gradients_are_computed_than_the_steps(name: str, norm: Norm, _: float) -> None:
    """Counted at the model: the steps of all searches together, and one gradient to check the model."""
    samples = make_case(count=3)
    result = make_attack(name, ThreatModel(norm, math.inf), steps=11)(samples.model, samples.x, samples.y)
    per_class = 3 if name == "superdeepfool" else 1
    assert (result.gradient_evaluations <= 11 * per_class).all()
    assert (result.evaluations >= result.gradient_evaluations).all()


def test_the_searches_of_ldn_share_the_steps_exactly() -> None:
    samples = make_case(count=1)
    model = CountsGradients(samples.model).eval()
    result = LDN(ThreatModel("l2", math.inf), steps=11, sharpness=(2.0, 5.0, 20.0))(model, samples.x, samples.y)
    assert result.gradient_evaluations.tolist() == [11]
    assert model.gradients == 11 + 1


class CountsGradients(nn.Module):
    """The model with a count of the images for which a gradient can be computed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.gradients = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.gradients += len(x) * x.requires_grad
        logits: Tensor = self.model(x)
        return logits


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name, norm, _ in CASES])
def test_the_result_is_the_nearest_example_found(name: str, norm: Norm) -> None:
    samples = make_case(count=4, dtype=torch.float64)
    attack = make_attack(name, ThreatModel(norm, math.inf), steps=16)
    for x, y in zip(samples.x.split(1), samples.y.split(1), strict=True):
        model = Recorded(samples.model).eval()
        result = attack(model, x, y)
        seen = torch.cat(model.seen)
        with torch.no_grad():
            wrong = samples.model(seen).argmax(dim=1) != y
        torch.testing.assert_close(result.distance, distance(seen - x, norm)[wrong].min()[None], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name, norm, _ in CASES])
def test_the_batch_size_does_not_matter(name: str, norm: Norm) -> None:
    samples = make_case(count=9, dtype=torch.float64)
    results = [
        make_attack(name, ThreatModel(norm, math.inf), steps=8, batch_size=size)(samples.model, samples.x, samples.y)
        for size in (2, 64)
    ]
    torch.testing.assert_close(results[0].distance, results[1].distance, rtol=1e-9, atol=1e-12)


def test_an_example_with_more_changes_than_allowed_keeps_the_largest() -> None:
    x = torch.full((2, 1, 2, 2), 0.5)
    points = x + torch.tensor([0.1, -0.3, 0.2, 0.0]).reshape(1, 1, 2, 2)
    inside = ball.retract(points, x, *ball.pixel_bounds(x, 2.0), ThreatModel("l0", 2.0))
    torch.testing.assert_close((inside - x)[0].flatten(), torch.tensor([0.0, -0.3, 0.2, 0.0]))
    assert distance(inside - x, "l0").tolist() == [2.0, 2.0]


def test_a_budget_in_l0_is_respected(small: Case) -> None:
    unbounded = SigmaZero(ThreatModel("l0", math.inf), steps=60)(small.model, small.x, small.y)
    budget = float(unbounded.distance.median().floor())
    result = SigmaZero(ThreatModel("l0", budget), steps=60)(small.model, small.x, small.y)
    assert int(result.fooled.sum()) > 0
    assert (result.distance[result.fooled] <= budget).all()
    assert (distance(result.examples.double() - small.x.double(), "l0") <= budget).all()


def test_l0_is_refused_where_it_is_not_defined(small: Case) -> None:
    with pytest.raises(InputError, match="pgd is defined for l2, linf, l1, not for l0"):
        make_attack("pgd", ThreatModel("l0", 5))
    with pytest.raises(InputError, match="number of channel values that may change, at least 1"):
        ThreatModel("l0", 8 / 255)
    with pytest.raises(InputError, match="norm must be l2 or linf, got 'l0'"):
        certify(small.model, small.x, norm="l0")
    with pytest.raises(InputError, match="allows every image, for these have 192 values"):
        SigmaZero(ThreatModel("l0", 200))(small.model, small.x, small.y)


def test_the_smooth_margin_lies_above_the_margin_by_its_stated_bound() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(50) % 7
    for scale in (0.5, 4.0, 100.0):
        above = smooth_margin(logits, labels, torch.full((50,), scale, dtype=torch.float64)) - margin(logits, labels)
        assert (above >= -1e-12).all()
        assert (above <= math.log(6) / scale + 1e-12).all()


def test_invalid_settings_of_ldn_are_refused() -> None:
    with pytest.raises(InputError, match="sharpness must be one or several positive numbers"):
        LDN(ThreatModel("l2", math.inf), sharpness=())
    with pytest.raises(InputError, match="2 searches need at least as many steps, got 1"):
        LDN(ThreatModel("l2", math.inf), steps=1)


class _Flattening(nn.Module):
    """The lead of class 1 flattens towards the boundary, where the mean of the pixels is 0.6."""

    def forward(self, x: Tensor) -> Tensor:
        beyond = x.flatten(1).mean(dim=1) - 0.6
        lead = (10 * beyond) ** 3
        return torch.stack([torch.zeros_like(lead), lead], dim=1)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_a_search_that_has_found_nothing_takes_longer_steps_until_it_crosses_the_boundary(norm: Norm) -> None:
    x = torch.full((1, 1, 4, 4), 0.5)
    result = LDN(ThreatModel(norm, math.inf), steps=20)(_Flattening().eval(), x, torch.zeros(1, dtype=torch.int64))
    nearest = {"l2": 0.4, "linf": 0.1, "l1": 1.6}[norm]
    assert nearest <= float(result.distance) < 1.02 * nearest
