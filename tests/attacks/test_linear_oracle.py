"""On a linear classifier the nearest adversarial example has a closed form, which every attack must approach."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustres.attacks import accuracy_curve, make_attack
from robustres.threat import Norm, ThreatModel

from .conftest import Recorded, make_case

# Dual norm: the distance to the boundary w.x + b = 0 is |w.x + b| / |w|_dual.
DUAL = {"l2": 2.0, "linf": 1.0, "l1": math.inf}
# Allowed relative distance from the optimum: (name, norm) -> tolerance.
MINIMUM_NORM = [
    ("fab", "l2", 0.02),
    ("fab", "linf", 0.02),
    ("fab", "l1", 0.06),
    ("deepfool", "l2", 0.03),
    ("deepfool", "linf", 0.03),
    ("deepfool", "l1", 0.03),
    ("ddn", "l2", 0.03),
    ("fmn", "l2", 0.03),
    ("fmn", "linf", 0.03),
    ("fmn", "l1", 0.10),
    ("ldn", "l2", 0.02),
    ("ldn", "linf", 0.02),
    ("ldn", "l1", 0.05),
    ("superdeepfool", "l2", 0.03),
]

# The cross-entropy of several classes does not point at the nearest one: pgd and apgd alone may miss it.
FLOAT32 = 2e-6  # allowed distance of the float32 model's boundary from the exact one, on any processor
REACHES_THE_NEAREST_CLASS = ("apgd-t", "fab", "ensemble")


class Linear(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(classes)
        self.layer = nn.Linear(3 * 6 * 6, classes)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(self.layer.weight.shape, generator=generator))
            self.layer.bias.copy_(-0.5 * self.layer.weight.sum(dim=1))  # all logits are equal at the grey image

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits


def case(classes: int, norm: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A linear model, nearly grey images (no pixel reaches the box), their labels, and the exact distances."""
    model = Linear(classes).eval()
    x = 0.5 + 0.08 * (torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(7)) - 0.5)
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(dim=1)
    gaps = logits.gather(1, y[:, None]) - logits
    weights = model.layer.weight[y][:, None] - model.layer.weight[None]
    lengths = torch.linalg.vector_norm(weights, ord=DUAL[norm], dim=2)
    exact = (gaps / lengths).scatter(1, y[:, None], torch.inf).amin(dim=1)
    return model, x, y, exact.detach().double()


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize(("name", "norm", "tolerance"), MINIMUM_NORM)
def test_minimum_norm_attacks_find_the_nearest_example(name: str, norm: str, tolerance: float, classes: int) -> None:
    model, x, y, exact = case(classes, norm)
    attack = make_attack(name, ThreatModel(norm, math.inf), steps=100)  # type: ignore[arg-type]
    result = attack(model, x, y)
    assert result.fooled.all()
    assert (result.distance >= exact * (1 - 1e-5) - FLOAT32).all(), "nearer than possible"
    ratio = result.distance / exact
    assert ratio.median() <= 1 + tolerance
    assert ratio.max() <= 1 + 6 * tolerance


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "apgd-t", "fab", "ensemble"])
def test_attacks_with_a_budget_succeed_just_outside_the_distance_and_never_inside(
    name: str, norm: str, classes: int
) -> None:
    model, x, y, exact = case(classes, norm)
    settings = {"fgsm": {}, "ensemble": {"queries": 50}}.get(name, {"steps": 100})
    slack = 1.35 if name == "fgsm" or norm == "l1" else 1.05
    for factor in (0.99, slack):
        threat = ThreatModel(norm, float(exact[0]) * factor)  # type: ignore[arg-type]
        result = make_attack(name, threat, **settings)(model, x[:1], y[:1])
        if factor < 1:
            assert not result.fooled.any()
        elif name in REACHES_THE_NEAREST_CLASS or (classes == 2 and (name != "fgsm" or norm == "linf")):
            assert result.fooled.all()


def test_the_curve_of_one_run_is_the_share_of_samples_farther_than_eps() -> None:
    model, x, y, exact = case(3, "l2")
    y = y.clone()
    y[0] = (y[0] + 1) % 3
    result = make_attack("fab", ThreatModel("l2", math.inf))(model, x, y)
    eps = [0.0, float(exact.median()), 100.0]
    curve = accuracy_curve(result, eps)
    assert curve[0] == 15 / 16
    assert curve[2] == 0.0
    assert curve == sorted(curve, reverse=True)
    assert curve[1] == float((result.distance > eps[1]).double().mean())


@pytest.mark.parametrize(("name", "norm", "tolerance"), [row for row in MINIMUM_NORM if row[1] != "l1"])
def test_the_nearest_example_with_the_target_of_the_caller_is_found(name: str, norm: Norm, tolerance: float) -> None:
    """Two classes, where the distance to the region of the target has a closed form."""
    model, x, y, exact = case(2, norm)
    result = make_attack(name, ThreatModel(norm, math.inf), steps=100)(model, x, y, targets=1 - y)
    assert torch.equal(result.prediction, 1 - y)
    assert (result.distance >= exact * (1 - 1e-5)).all()
    assert (result.distance <= exact * (1 + tolerance)).all()


@pytest.mark.parametrize("name", ["fab", "deepfool", "ddn", "fmn", "pgd", "apgd", "square"])
def test_no_other_class_than_the_target_of_the_caller_counts(name: str) -> None:
    model, x, y, _ = case(5, "l2")
    targets = (y + 2) % 5
    result = make_attack(name, ThreatModel("l2", 3.0), steps=60)(model, x, y, targets=targets)
    assert torch.equal(result.prediction == targets, result.fooled)
    assert result.fooled.all()


@pytest.mark.parametrize("name", ["fab", "deepfool", "ddn", "fmn"])
def test_a_minimum_norm_attack_returns_the_nearest_example_it_found(name: str) -> None:
    """One sample at a time, so that every evaluated point belongs to it."""
    samples = make_case(count=6, dtype=torch.float64)
    attack = make_attack(name, ThreatModel("l2", math.inf), steps=15)
    for x, y in zip(samples.x.split(1), samples.y.split(1), strict=True):
        model = Recorded(samples.model).eval()
        result = attack(model, x, y)
        seen = torch.cat(model.seen)
        with torch.no_grad():
            wrong = samples.model(seen).argmax(dim=1) != y
        met = (seen - x).flatten(1).norm(dim=1)[wrong]
        assert len(met) > 1
        torch.testing.assert_close(result.distance, met.min()[None], rtol=1e-9, atol=1e-9)
