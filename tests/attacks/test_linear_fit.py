"""Attacks on misleading gradients: the linear fit over the whole ball, and short steps from the nearest miss."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustres.attacks import PGD, Strong
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.methods import linear_fit
from robustres.attacks.methods.refinement import Refinement
from robustres.attacks.search import engine
from robustres.numerics import distance
from robustres.threat import Norm, ThreatModel


class Rippled(nn.Module):
    """A linear model of 6 x 6 images and three classes, plus a fine ripple on every logit."""

    def __init__(self, height: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.height = height
        self.weight = torch.randn(36, 3, generator=generator) / 6
        self.waves = 300 * torch.randn(36, 3, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        logits: Tensor = (flat - 0.5) @ self.weight + self.height * torch.sin(flat @ self.waves)
        return logits


def images(model: Rippled, count: int) -> tuple[Tensor, Tensor]:
    x = 0.3 + 0.4 * torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return x, model(x).argmax(dim=1)


def problem_of(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Problem, Ledger]:
    problem = Problem(model=model, x=x, labels=y, classes=y, index=torch.arange(len(x)), threat=threat)
    ledger = Ledger(problem)
    ledger.record_clean(problem.answers(x))
    return problem, ledger


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("l2", 0.06)])
def test_the_fit_reaches_the_optimum_of_a_linear_model(norm: Norm, eps: float) -> None:
    model = Rippled(0.0)
    x, y = images(model, 20)
    problem, ledger = problem_of(model, x, y, ThreatModel(norm, eps))
    linear_fit.offer(problem, ledger, torch.ones_like(ledger.fooled), queries=600, seed=0, batch_size=64)
    apart = model.weight.T[None] - model.weight.T[y][:, None]
    gain = eps * torch.linalg.vector_norm(apart, ord=1 if norm == "linf" else 2, dim=2)
    logits = model(x)
    optimum = (logits - logits.gather(1, y[:, None]) + gain).scatter(1, y[:, None], -math.inf).amax(dim=1)
    left = ~ledger.fooled
    assert 0 < int(left.sum()) < 20
    torch.testing.assert_close(ledger.loss[left], optimum[left], rtol=0.01, atol=2e-3)
    assert (optimum[left] < 2e-3).all()
    assert (ledger.evaluations == 1 + 603).all()


def test_ripples_that_mislead_pgd_do_not_mislead_strong() -> None:
    model, threat = Rippled(0.05), ThreatModel("linf", 0.03)
    x, y = images(model, 20)
    strong = Strong(threat, steps=20, queries=20, masked_queries=20)(model.eval(), x, y)
    smooth = PGD(threat)(Rippled(0.0).eval(), x, y)
    assert strong.robust <= smooth.robust < PGD(threat)(model, x, y).robust
    assert (distance(strong.examples.double() - x.double(), "linf") <= threat.eps).all()


def test_short_steps_climb_the_nearest_crest() -> None:
    model, threat = Rippled(0.05), ThreatModel("linf", 0.03)
    x, y = images(model, 20)
    problem, ledger = problem_of(model, x, y, threat)
    before = ledger.loss.clone()
    search = Refinement(problem, ledger, steps=30, seed=0)
    engine.run(problem, search, ledger=ledger, restarts=torch.ones_like(y), batch_size=64)
    assert (ledger.fooled | (ledger.loss > before)).all()
    moved = (ledger.examples - x).abs().flatten(1).amax(dim=1)
    assert (moved < 0.02 * 30 / 2 * threat.eps + 1e-6).all()
