"""Of the results that several searches find for one sample at the same time, the best is recorded once."""

import pytest
import torch
from torch import Tensor, nn

from robustres.attacks import make_attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.threat import ThreatModel

from .conftest import make_case


class Half(nn.Module):
    """Two classes; the second where the pixel exceeds one half."""

    def forward(self, x: Tensor) -> Tensor:
        pixel = x.flatten(1).mean(dim=1)
        return torch.stack([0.5 - pixel, pixel - 0.5], dim=1)


def ledger_of(x: list[float]) -> Ledger:
    images = torch.tensor(x, dtype=torch.float64)[:, None]
    zeros = torch.zeros(len(x), dtype=torch.int64)
    problem = Problem(model=Half(), x=images, labels=zeros, classes=zeros, index=zeros, threat=ThreatModel("linf", 0.4))
    ledger = Ledger(problem)
    ledger.record_clean(problem.answers(images))
    return ledger


def test_of_several_examples_for_one_sample_the_nearest_is_kept() -> None:
    ledger = ledger_of([0.3, 0.4])
    points = torch.tensor([[0.65], [0.55], [0.6], [0.45]], dtype=torch.float64)
    assert ledger.offer(torch.tensor([0, 0, 0, 1]), points).tolist() == [True, True, True, False]
    assert ledger.fooled.tolist() == [True, False]
    torch.testing.assert_close(ledger.examples, torch.tensor([[0.55], [0.45]], dtype=torch.float64))
    torch.testing.assert_close(ledger.distance, torch.tensor([0.25, torch.inf], dtype=torch.float64))
    assert ledger.evaluations.tolist() == [4, 2]


def test_of_several_misses_for_one_sample_the_nearest_to_a_success_is_kept() -> None:
    ledger = ledger_of([0.3])
    points = torch.tensor([[0.4], [0.48], [0.45]], dtype=torch.float64)
    ledger.note(torch.zeros(3, dtype=torch.int64), points, torch.tensor([-0.2, -0.04, -0.1]))
    torch.testing.assert_close(ledger.result(8).examples, torch.tensor([[0.48]], dtype=torch.float64))
    ledger.offer(torch.zeros(3, dtype=torch.int64), points + 0.01)
    torch.testing.assert_close(ledger.examples, torch.tensor([[0.49]], dtype=torch.float64))


@pytest.mark.parametrize("batch_size", [2, 5, 256])
@pytest.mark.parametrize("name", ["apgd-t", "fab", "deepfool"])
def test_parallel_searches_are_all_counted(name: str, batch_size: int) -> None:
    case = make_case(dtype=torch.float64, count=6)
    attack = make_attack(name, ThreatModel("linf", 1e-6), steps=5, batch_size=batch_size)
    result = attack(*case)
    assert not result.fooled.any()
    if name == "deepfool":  # ends at the boundary outside the ball
        assert (result.gradient_evaluations >= 3).all()
        assert (
            result.gradient_evaluations == make_attack(name, attack.threat, steps=5)(*case).gradient_evaluations
        ).all()
    else:
        assert (result.gradient_evaluations == 3 * 5).all()
    assert (result.steps <= result.gradient_evaluations).all()
