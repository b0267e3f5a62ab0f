"""The shared loop: candidates that are not confirmed, restarts, refilling from the queue."""

import pytest
import torch
from torch import Tensor, nn

from robustres.attacks import APGD, PGD, Square, make_attack
from robustres.attacks.base.problem import Problem
from robustres.attacks.methods.apgd import AutoPgd
from robustres.attacks.search.engine import Slots
from robustres.threat import ThreatModel

from .conftest import Case, make_case

LINF = ThreatModel("linf", 0.01)


class WrongInTheSearch(nn.Module):
    """Predict the next class whenever a gradient is requested, and the true class otherwise."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        if torch.is_grad_enabled():
            lie = torch.nn.functional.one_hot((logits.argmax(dim=1) + 1) % logits.shape[1], logits.shape[1])
            return logits + 1000.0 * lie
        return logits


@pytest.mark.parametrize("batch_size", [3, 256])
def test_an_unconfirmed_candidate_is_no_success_and_the_search_resumes(batch_size: int) -> None:
    case = make_case(dtype=torch.float64)
    model = WrongInTheSearch(case.model).eval()
    result = PGD(LINF, steps=7, schedule="cosine", batch_size=batch_size)(model, case.x, case.y)
    with torch.no_grad():
        assert torch.equal(model(result.examples).argmax(dim=1) != case.y, result.fooled)
    assert not result.fooled.all()
    assert (result.steps[~result.fooled] == 7).all()
    assert (result.gradient_evaluations[~result.fooled] == 7).all()


class HastyInTheSearch(nn.Module):
    """One pixel; class 1 from 0.8 on, but from 0.6 on whenever a gradient is requested."""

    def forward(self, x: Tensor) -> Tensor:
        level = x.flatten(1).mean(dim=1) - (0.6 if torch.is_grad_enabled() else 0.8)
        return torch.stack([-level, level], dim=1)


def test_if_a_candidate_at_the_last_step_is_not_confirmed_the_next_point_is_verified() -> None:
    x, y = torch.full((3, 1, 1, 1), 0.5, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    attack = PGD(ThreatModel("linf", 0.45), steps=2, schedule="constant", step_size=0.2, random_start=False)
    result = attack(HastyInTheSearch().eval(), x, y)
    assert result.fooled.all()
    torch.testing.assert_close(result.examples, x + 0.4)


def test_a_robust_sample_uses_every_restart_and_each_starts_elsewhere() -> None:
    case = make_case(dtype=torch.float64)
    tiny = ThreatModel("linf", 1e-4)
    once, thrice = (PGD(tiny, steps=4, schedule="cosine", restarts=restarts)(*case) for restarts in (1, 3))
    robust = ~thrice.fooled
    assert robust.any()
    assert (thrice.gradient_evaluations[robust] == 12).all()
    assert (thrice.loss >= once.loss - 1e-12)[robust].all()  # the batches differ, and hence the rounding


def test_dropping_slots_leaves_the_others_unchanged() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        count = int(torch.randint(1, 12, (), generator=generator))
        slots = Slots(sample=torch.arange(count), points=torch.rand(count, 2, generator=generator))
        gone = torch.rand(count, generator=generator) < 0.4
        kept = {int(s): p.clone() for s, p in zip(slots["sample"][~gone], slots["points"][~gone], strict=True)}
        slots.drop(gone)
        assert {int(s) for s in slots["sample"]} == set(kept)
        assert all(torch.equal(kept[int(s)], p) for s, p in zip(slots["sample"], slots["points"], strict=True))


class Valley(nn.Module):
    """One pixel; the margin of the label is smallest, and still positive, at 0.37."""

    def forward(self, x: Tensor) -> Tensor:
        own = 0.1 + (x.flatten(1).mean(dim=1) - 0.37).square()
        return torch.stack([own, torch.zeros_like(own)], dim=1)


def test_apgd_halves_its_step_until_it_has_found_the_minimum() -> None:
    x = torch.full((5, 1, 1, 1), 0.5, dtype=torch.float64)
    result = APGD(ThreatModel("linf", 0.4), steps=100)(Valley().eval(), x, torch.zeros(5, dtype=torch.int64))
    assert not result.fooled.any()
    assert ((result.examples - 0.37).abs() < 3e-4).all()  # 1.4e-3 without halving


@pytest.mark.parametrize(("age", "expected"), [(22, 0.1125), (23, 0.75)])
def test_apgd_goes_back_to_its_best_point_at_a_checkpoint_without_progress(age: int, expected: float) -> None:
    """Best point 0.2 with gradient +1; current point 0.8 with gradient -1; previous point 0.7; the step is 0.1.

    At the checkpoint: 0.2 + 3/4 * 0.05 + 1/4 * (0.2 - 0.7), half the step along the gradient of the best point. One
    update later, which is not a checkpoint: 0.8 - 3/4 * 0.1 + 1/4 * (0.8 - 0.7).
    """
    one, nobody = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    threat = ThreatModel("linf", 0.5)
    problem = Problem(nn.Identity(), 0.5 * one, nobody, nobody, nobody, threat)
    slots = Slots(sample=nobody, restart=nobody, index=nobody, age=nobody + age, x=0.5 * one, low=0 * one, high=one)
    search = AutoPgd(problem, steps=100, seed=0, loss="ce")
    search.begin(slots)
    slots |= {"points": 0.8 * one, "previous": 0.7 * one, "best": 0.2 * one}
    slots |= {"best_gradient": one, "best_loss": 0 * one[0], "last_loss": 0 * one[0], "size": 0.1 * one[0]}
    assert not search.step(slots, -one[0], -one)
    torch.testing.assert_close(slots["points"], expected * one)


@pytest.mark.parametrize("name", ["pgd", "apgd", "square", "fab"])
def test_the_order_of_the_samples_does_not_matter(name: str) -> None:
    case = make_case(dtype=torch.float64, count=9)
    order = torch.tensor([4, 8, 0, 2, 6, 1, 7, 3, 5])
    attack = make_attack(name, ThreatModel("linf", 0.02), steps=12)
    straight = attack(*case)
    shuffled = attack(case.model, case.x[order], case.y[order], indices=order)
    assert torch.equal(shuffled.fooled, straight.fooled[order])
    torch.testing.assert_close(shuffled.examples, straight.examples[order], rtol=0, atol=1e-7)


def test_square_returns_its_best_miss(small: Case) -> None:
    result = Square(ThreatModel("linf", 1e-3), steps=40)(*small)
    start = Square(ThreatModel("linf", 1e-3), steps=1)(*small)
    assert not result.fooled.all()
    assert (result.loss >= start.loss)[~result.fooled].all()
