"""The step of the fast adaptive boundary attack, computed by hand, and its optimisations."""

import math

import pytest
import torch
from torch import nn

from robustres.attacks import FAB
from robustres.attacks.base.problem import Problem
from robustres.attacks.methods import fab
from robustres.attacks.methods.fab import BoundarySearch
from robustres.attacks.search.engine import Slots
from robustres.threat import ThreatModel

from .conftest import Case


@pytest.mark.parametrize(("hit", "expected"), [(False, [0.6095, 0.68]), (True, [0.60905, 0.662])])
def test_a_step_is_the_mean_of_both_projections_biased_towards_the_image(hit: bool, expected: list[float]) -> None:
    """The boundary is the line where the first pixel is 0.6; the image lies at (0.5, 0.5), the point at (0.4, 0.7).

    The projections, 5 % beyond, are (0.61, 0.7) from the point and (0.605, 0.5) from the image, with weights 0.9 and
    0.1. After a hit the point first goes back by a tenth, to (0.41, 0.68), which is projected to (0.6095, 0.68).
    """
    x = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    nobody = torch.zeros(1, dtype=torch.int64)
    problem = Problem(
        model=nn.Identity(), x=x, labels=nobody, classes=nobody, index=nobody, threat=ThreatModel("l2", 1.0)
    )
    gradient, loss = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([-0.2], dtype=torch.float64)
    slots, search = Slots(sample=nobody, x=x), BoundarySearch(problem, steps=1)
    search.begin(slots)
    slots["points"] = torch.tensor([[0.4, 0.7]], dtype=torch.float64)
    found = search.next_points(slots, torch.tensor([hit]), loss, gradient)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


def test_the_number_of_images_projected_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch, small: Case) -> None:
    attack = FAB(ThreatModel("linf", math.inf), steps=5)
    whole = attack(*small)
    monkeypatch.setattr(fab, "CACHED", 5 * small.x[0].numel())
    parts = attack(*small)
    assert len(small.x) % 5  # the last part is shorter
    assert torch.equal(parts.examples, whole.examples)
    assert bool(whole.fooled.any())
