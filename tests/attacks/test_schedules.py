"""PGD's schedules: only exhausted searches end early, and the forecast costs no success here."""

import math

import pytest
import torch
from torch import Tensor, nn

from robustres.attacks import PGD
from robustres.attacks.search import repeated_iterates as orbits
from robustres.attacks.search import success_forecast as prospects
from robustres.attacks.search.engine import Slots
from robustres.errors import InputError
from robustres.threat import ThreatModel

from .conftest import Case, Recorded, make_case

EPS = {"linf": 0.01, "l2": 0.15, "l1": 1.2}


class Slope(nn.Module):
    """The margin of the label is 1 minus half the pixel: no success is possible; all searches end in one corner."""

    def forward(self, x: Tensor) -> Tensor:
        own = 1 - x.flatten(1).mean(dim=1) / 2
        return torch.stack([own, torch.zeros_like(own)], dim=1)


class Counted(nn.Module):
    """The model with a count of the images whose gradient can be computed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.gradients = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.gradients += len(x) * (torch.is_grad_enabled() and x.requires_grad)
        logits: Tensor = self.model(x)
        return logits


def full_constant(case: Case, eps: float, steps: int, size: float) -> tuple[Tensor, Tensor]:
    """All steps of a constant schedule without a random start, as plain code: fooled, and the best margin."""
    points, best = case.x, torch.full((len(case.x),), -math.inf, dtype=case.x.dtype)
    for _ in range(steps + 1):
        leaf = points.clone().requires_grad_(True)
        logits = case.model(leaf)
        own = logits.gather(1, case.y[:, None])[:, 0]
        best = torch.maximum(best, (logits.scatter(1, case.y[:, None], -math.inf).amax(1) - own).detach())
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, case.y, reduction="sum"), leaf)
        points = (points + size * gradient.sign()).clamp(case.x - eps, case.x + eps).clamp(0, 1)
    return best > 0, best


@pytest.mark.parametrize("size", [0.25, 1.0, 2.5])
def test_a_closed_orbit_ends_early_and_finds_what_all_steps_find(size: float) -> None:
    case = make_case(dtype=torch.float64, count=20)
    eps, steps = 0.008, 60
    model = Counted(case.model).eval()
    attack = PGD(ThreatModel("linf", eps), steps=steps, step_size=size * eps, schedule="constant", random_start=False)
    result = attack(model, case.x, case.y)
    fooled, best = full_constant(case, eps, steps, size * eps)
    assert torch.equal(result.fooled, fooled)
    assert 0 < fooled.sum() < 20
    torch.testing.assert_close(result.loss[~fooled], best[~fooled], rtol=0, atol=1e-9)
    assert result.steps[~fooled].min() < steps
    assert result.gradient_evaluations.sum() < 0.8 * steps * int((~fooled).sum())


def test_an_orbit_is_closed_by_the_current_or_the_previous_point_only() -> None:
    a, b, c = (torch.full((1, 2), value) for value in (0.1, 0.2, 0.3))
    slots = Slots(points=a.clone())
    orbits.begin(slots)
    assert not orbits.advance(slots, b.clone())
    assert not orbits.advance(slots, c.clone())
    assert orbits.advance(slots, c.clone())
    assert not orbits.advance(slots, b.clone())
    assert orbits.advance(slots, c.clone())
    orbits.forget(slots, torch.tensor([True]))
    assert not orbits.advance(slots, b.clone())


def test_points_that_differ_in_one_pixel_do_not_close_an_orbit() -> None:
    slots = Slots(points=torch.zeros(1, 500))
    orbits.begin(slots)
    for pixel in (1, 250, 499):
        other = torch.zeros(1, 500)
        other[0, pixel] = 1e-7
        assert not orbits.advance(slots, other)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [20, 50])
def test_the_adaptive_schedule_leaves_no_more_than_the_cosine_for_fewer_gradients(
    norm: str, share: float, steps: int
) -> None:
    case = make_case(count=24)
    threat = ThreatModel(norm, share * EPS[norm])  # type: ignore[arg-type]
    adaptive, cosine = (PGD(threat, steps=steps, schedule=s)(*case) for s in ("adaptive", "cosine"))  # type: ignore[arg-type]
    assert adaptive.robust <= cosine.robust
    assert (adaptive.steps <= steps).all()
    assert adaptive.robust
    assert adaptive.gradient_evaluations.sum() <= cosine.gradient_evaluations.sum()
    if share == 0.5:  # most samples survive
        assert adaptive.gradient_evaluations.sum() < 0.95 * cosine.gradient_evaluations.sum()


def test_a_search_that_stalls_continues_with_the_margin_loss() -> None:
    """Thirty classes rise with u and never win; one falls and wins at u < -3/4, and is the nearest for u < 1/20.

    Cross-entropy follows the thirty from everywhere in the ball; the margin loss follows the one from half of it.
    """

    class Slopes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            u = 2 * x.flatten(1)[:, :1] - 1
            return torch.cat([torch.zeros_like(u), (0.8 * u - 1).expand(-1, 30), -1.2 * u - 0.9], dim=1)

    x, y = torch.full((20, 1, 1, 1), 0.5, dtype=torch.float64), torch.zeros(20, dtype=torch.int64)
    threat = ThreatModel("linf", 0.4)
    assert PGD(threat, steps=40, schedule="cosine")(Slopes().eval(), x, y).robust == 20
    assert PGD(threat, steps=40)(Slopes().eval(), x, y).robust <= 5


def test_the_adaptive_schedule_is_independent_of_the_batch_and_serves_targets_and_restarts() -> None:
    case = make_case(dtype=torch.float64, count=15)
    attack = {"steps": 24, "restarts": 2, "schedule": "adaptive"}
    targets = (case.y + 1) % 4
    whole, parts = (PGD(ThreatModel("linf", 0.02), batch_size=size, **attack) for size in (256, 4))  # type: ignore[arg-type]
    first = whole(*case, targets=targets)
    second = parts(*case, targets=targets)
    assert torch.equal(first.fooled, second.fooled)
    assert torch.equal(first.gradient_evaluations, second.gradient_evaluations)
    torch.testing.assert_close(first.examples, second.examples, rtol=0, atol=1e-9)
    assert torch.equal(first.prediction == targets, first.fooled)


def test_where_the_points_repeat_the_adaptive_schedule_restarts_elsewhere() -> None:
    x = torch.full((3, 1, 1, 1), 0.5, dtype=torch.float64)
    for random_start in (True, False):
        model = Recorded(Slope()).eval()
        attack = PGD(ThreatModel("linf", 0.4), steps=40, random_start=random_start)
        result = attack(model, x, torch.zeros(3, dtype=torch.int64))
        torch.testing.assert_close(result.examples, x + 0.4)
        assert (result.steps < 20).all()
        visited = torch.cat([seen.flatten() for seen in model.seen])
        assert (visited.unique().numel() > 9) == random_start


class Roof(nn.Module):
    """The margin of the label is smallest, and still 1, where the pixel is 1/2; constant steps overshoot it."""

    def forward(self, x: Tensor) -> Tensor:
        own = 1 + (x.flatten(1).mean(dim=1) - 0.5).abs()
        return torch.stack([own, torch.zeros_like(own)], dim=1)


def test_a_hopeless_search_continues_with_a_quarter_of_the_step() -> None:
    model, eps, steps = Recorded(Roof()).eval(), 0.3, 40
    x = torch.full((1, 1, 1, 1), 0.46, dtype=torch.float64)
    PGD(ThreatModel("linf", eps), steps=steps, random_start=False)(model, x, torch.zeros(1, dtype=torch.int64))
    visited = torch.cat([seen.flatten() for seen in model.seen if len(seen) == 1])
    jumps = (visited[1:] - visited[:-1]).abs()
    assert (jumps > 0.29).sum() >= 3
    assert ((jumps - eps / 4).abs() < 1e-9).any()  # at an age where half a cosine still has nine tenths of eps


def test_a_model_that_may_draw_random_numbers_gets_all_steps(small: Case) -> None:
    small.model.train()
    tiny = ThreatModel("linf", 1e-5)
    result = PGD(tiny, steps=9, schedule="constant", allow_training_mode=True)(*small)
    assert (result.steps[~result.fooled] == 9).all()


def test_a_search_is_abandoned_when_four_times_its_progress_would_not_suffice() -> None:
    """Progress from -10 to -9 in 5 steps: with 10 steps left, 4 x 0.2 x 10 = 8 is less than the 9 that are missing."""
    slots = Slots(sample=torch.zeros(2, dtype=torch.int64), age=torch.full((2,), 4))
    prospects.begin(slots)
    assert not prospects.hopeless(slots, torch.tensor([-10.0, -10.0]), steps=20, marks=4).any()
    slots["age"] = torch.full((2,), 9)
    given_up = prospects.hopeless(slots, torch.tensor([-9.0, -7.9]), steps=20, marks=4)
    assert given_up.tolist() == [True, False]


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="adaptive, cosine, constant, got 'linear'"):
        PGD(ThreatModel("linf", 0.1), schedule="linear")  # type: ignore[arg-type]
