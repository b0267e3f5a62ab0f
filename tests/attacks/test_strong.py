"""The strong ensemble: as strong as the standard one, cheaper, and invariant to the scale of the logits."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustres.attacks import Ensemble, Strong, make_attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.search.class_distance import class_distances, nearest_first
from robustres.attacks.search.targets import likely_targets
from robustres.errors import InputError
from robustres.numerics import distance
from robustres.threat import ThreatModel

from .conftest import Case, make_case

EPS = {"linf": 0.02, "l2": 0.3, "l1": 3.0}


class Times(nn.Module):
    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.factor * self.model(x)
        return logits


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_leaves_no_more_samples_than_the_standard_ensemble(norm: str) -> None:
    case = make_case(classes=5, count=12)
    threat = ThreatModel(norm, EPS[norm] / 2)  # type: ignore[arg-type]
    result = Strong(threat)(*case)
    assert 0 < result.robust <= Ensemble(threat, steps=20, queries=50)(*case).robust
    assert (distance(result.examples.double() - case.x.double(), norm) <= threat.eps).all()
    assert torch.equal(case.model(result.examples).argmax(dim=1) != case.y, result.fooled)


@pytest.mark.parametrize("power", [-7, 7])
def test_the_scale_of_the_logits_does_not_matter(power: int) -> None:
    """A power of two only changes the exponents, so that even the examples are identical."""
    case = make_case(classes=5, count=12)
    strong = Strong(ThreatModel("linf", 0.008), steps=20)
    plain, scaled = strong(*case), strong(Times(case.model, 2.0**power).eval(), case.x, case.y)
    assert 0 < plain.robust < 12
    assert torch.equal(plain.examples, scaled.examples)
    assert torch.equal(plain.gradient_evaluations, scaled.gradient_evaluations)


def test_every_call_of_the_model_is_counted(small: Case) -> None:
    seen: list[tuple[int, bool]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((len(inputs[0]), torch.is_grad_enabled() and inputs[0].requires_grad))

    small.model.register_forward_hook(note)
    result = Strong(ThreatModel("linf", 0.01), steps=20, queries=20, masked_queries=20)(*small)
    answers, gradients = sum(n for n, _ in seen), sum(n for n, with_gradient in seen if with_gradient)
    # Checking the model before the attack: eight images, one among two others, and the gradient of eight.
    assert int(result.evaluations.sum()) == answers - (8 + 3 + 8)
    assert int(result.gradient_evaluations.sum()) == gradients - 8


def test_targets_of_the_caller_are_reached_and_invalid_settings_refused(small: Case) -> None:
    targets = (small.y + 1) % 4
    result = Strong(ThreatModel("linf", 0.1), steps=20, queries=20)(*small, targets=targets)
    assert result.fooled.any()
    assert torch.equal(result.prediction == targets, result.fooled)
    with pytest.raises(InputError, match="reach must be positive"):
        make_attack("strong", ThreatModel("linf", 0.1), reach=-1.0)
    with pytest.raises(InputError, match="rounds must be a whole number of at least 1"):
        make_attack("strong", ThreatModel("linf", 0.1), rounds=0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_distance_of_a_class_is_exact_for_a_linear_model(norm: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double().eval()
        x = torch.rand(6, 3, 2, 2).double() * 0.2 + 0.4
    y = model(x).argmax(dim=1)
    problem = Problem(model=model, x=x, labels=y, classes=y, index=torch.arange(6), threat=ThreatModel(norm, math.inf))  # type: ignore[arg-type]
    ledger, targets = Ledger(problem), likely_targets(model(x).detach(), y, 9)
    aims, away = nearest_first(targets, class_distances(problem, ledger, targets, 4))
    weight, dual = model[1].weight, {"linf": 1.0, "l2": 2.0, "l1": math.inf}[norm]
    lead = model(x).gather(1, y[:, None]) - model(x).gather(1, aims)
    slope = torch.linalg.vector_norm(weight[y][:, None] - weight[aims], ord=dual, dim=2)
    expected = (lead / slope).detach()
    free = expected < 0.1  # within which the box does not matter
    assert free.any()
    torch.testing.assert_close(away[free], expected[free], rtol=1e-4, atol=1e-6)
    assert (away.diff(dim=1) >= 0).all()
    assert (ledger.gradients == 4).all()


@pytest.mark.slow
@pytest.mark.parametrize(("eps", "ensemble"), [(2 / 255, 76), (8 / 255, 29)])
def test_it_leaves_no_more_than_the_standard_ensemble_on_resnet_2b(eps: float, ensemble: int, resnet: Case) -> None:
    assert Strong(ThreatModel("linf", eps))(*resnet).robust <= ensemble
