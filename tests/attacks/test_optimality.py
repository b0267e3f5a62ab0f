"""The measure of AttackBench: exact areas, exact budgets."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustres.attacks import DDN, LDN, local_optimality, nearest_within, optimality
from robustres.errors import InputError
from robustres.threat import ThreatModel

from .conftest import Case


def test_the_areas_are_those_of_the_curves() -> None:
    generator = torch.Generator().manual_seed(0)
    distances = {name: torch.rand(40, generator=generator, dtype=torch.float64) for name in "abc"}
    distances["c"][:5] = torch.inf
    distances["a"][7] = distances["b"][7] = distances["c"][7] = 0
    found = local_optimality(distances)
    best = torch.stack(list(distances.values())).amin(dim=0)
    grid = torch.linspace(0, float(best.amax()), 20001, dtype=torch.float64)

    def area(values: Tensor) -> float:
        return float(torch.trapezoid((values[None] > grid[:, None]).double().mean(dim=1), grid))

    nothing = area(torch.where(best > 0, torch.inf, 0.0))
    for name, values in distances.items():
        expected = 1 - (area(values) - area(best)) / (nothing - area(best))
        assert found[name] == pytest.approx(expected, abs=1e-3)


def test_an_attack_that_finds_nothing_scores_0_and_the_best_of_all_scores_1() -> None:
    far = torch.tensor([1.0, 2.0, 3.0])
    assert local_optimality({"best": far, "nothing": torch.full((3,), torch.inf)}) == {"best": 1.0, "nothing": 0.0}
    networks = [{"a": far, "b": far + 1}, {"a": far, "b": far}]
    assert optimality(networks)["b"] == pytest.approx((local_optimality(networks[0])["b"] + 1) / 2)


def test_incomparable_results_are_refused() -> None:
    with pytest.raises(InputError, match="same samples"):
        local_optimality({"a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(InputError, match="equally far"):
        local_optimality({"a": torch.ones(2), "b": torch.ones(2)})
    with pytest.raises(InputError, match="same attacks"):
        optimality([{"a": torch.ones(2)}, {"b": torch.ones(2)}])


class Counts(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def test_the_budget_of_evaluations_is_not_exceeded(small: Case) -> None:
    attack = LDN(ThreatModel("l2", math.inf), steps=30)
    for budget in (20, 61, 500):
        model = Counts(small.model).eval()
        nearest_within(attack, model, small.x[:1], small.y[:1], norm="l2", budget=budget)
        assert 0 < model.forwards + model.backwards <= budget + 1  # and one evaluation of the image itself


def test_a_larger_budget_finds_no_farther_example_and_a_sufficient_one_that_of_the_attack(small: Case) -> None:
    attack = DDN(ThreatModel("l2", math.inf), steps=20)
    settings = {"norm": "l2", "model": small.model, "x": small.x, "y": small.y}
    few, all_of_it = (nearest_within(attack, budget=budget, **settings) for budget in (25, 200))
    assert (all_of_it <= few).all()
    torch.testing.assert_close(all_of_it, attack(*small).distance, rtol=1e-5, atol=1e-7)


def test_misclassified_images_are_at_distance_0(small: Case) -> None:
    wrong = (small.y + 1) % 4
    attack = DDN(ThreatModel("l2", math.inf), steps=5)
    assert nearest_within(attack, small.model, small.x[:2], wrong[:2], norm="l2", budget=9).tolist() == [0, 0]
