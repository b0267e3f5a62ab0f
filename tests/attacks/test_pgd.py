"""FGSM and PGD: the examples of the reference, the exact ball, determinism, saturated and broken models."""

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from robustres.attacks import FGSM, PGD, Attack, make_attack
from robustres.errors import InputError
from robustres.numerics import distance
from robustres.threat import NORMS, ThreatModel

from .conftest import Case, Recorded, make_case

LINF = ThreatModel("linf", 8 / 255)
EPS = {"linf": 0.05, "l2": 0.6, "l1": 6.0}


def attacks_for(norm: str, **settings: int) -> list[Attack]:
    threat = ThreatModel(norm, EPS[norm])  # type: ignore[arg-type]
    return [FGSM(threat), PGD(threat, steps=10, **settings)]


def test_fgsm_gives_the_references_examples() -> None:
    case = make_case(dtype=torch.float64)
    ours = FGSM(LINF)(case.model, case.x, case.y)
    theirs = torchattacks.FGSM(case.model, eps=8 / 255)(case.x, case.y)
    torch.testing.assert_close(ours.examples, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_visits_the_same_points_as_the_reference_from_the_same_start(norm: str) -> None:
    case = make_case(dtype=torch.float64)
    model = Recorded(case.model).eval()
    eps, step_size, steps = (0.002, 0.0006, 8) if norm == "linf" else (0.02, 0.006, 8)
    threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
    settings = {"steps": steps, "step_size": step_size, "schedule": "constant", "random_start": False}
    attack = PGD(threat, allow_training_mode=True, **settings)  # so that no search ends because points repeat
    held = ~attack(case.model, case.x, case.y).fooled  # fooled samples retire early: compare those that run to the end
    x, y = case.x[held], case.y[held]
    assert not attack(model, x, y).fooled.any()
    tried = 3  # the clean images, and two calls before the search on the first few of them
    visited, model.seen = model.seen[tried : tried + steps + 1], []
    reference = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    theirs = reference(model, eps=eps, alpha=step_size, steps=steps, random_start=False)(x, y)
    order = [int((row - x).abs().flatten(1).amax(1).argmin()) for row in visited[0]]  # nearest to another class first
    assert sorted(order) == list(range(len(x)))
    expected = torch.stack([*model.seen, theirs])[:, order]
    torch.testing.assert_close(torch.stack(visited), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_examples_lie_in_the_closed_ball_and_are_misclassified(norm: str, small: Case) -> None:
    for attack in attacks_for(norm):
        result = attack(small.model, small.x, small.y)
        away = distance(result.examples.double() - small.x.double(), norm)
        assert (away <= EPS[norm]).all()
        assert ((result.examples >= 0) & (result.examples <= 1)).all()
        prediction = small.model(result.examples).argmax(dim=1)
        assert torch.equal(prediction, result.prediction)
        assert torch.equal(prediction != small.y, result.fooled)
        assert torch.equal(result.fooled, result.loss > 0)
        assert torch.equal(result.distance, torch.where(result.fooled, away, torch.inf))
        assert result.fooled.any()


@pytest.mark.parametrize("norm", NORMS)
def test_results_do_not_depend_on_the_batch_size_or_on_the_partition_of_the_samples(norm: str) -> None:
    case = make_case(dtype=torch.float64, count=15)
    threat = ThreatModel(norm, EPS[norm] / 2)  # type: ignore[arg-type]
    whole = PGD(threat, steps=6, restarts=3)(case.model, case.x, case.y)
    small_batches = PGD(threat, steps=6, restarts=3, batch_size=4)(case.model, case.x, case.y)
    order = torch.arange(14, -1, -1)
    turned = PGD(threat, steps=6, restarts=3)(case.model, case.x[order], case.y[order], indices=order).select(order)
    for other in (small_batches, turned):
        assert torch.equal(whole.fooled, other.fooled)
        assert torch.equal(whole.gradient_evaluations, other.gradient_evaluations)
        torch.testing.assert_close(whole.examples, other.examples, rtol=0, atol=1e-9)


def test_a_targeted_attack_reaches_the_target_and_no_other_class_counts(small: Case) -> None:
    targets = (small.y + 1) % 4
    result = PGD(ThreatModel("linf", 0.3), steps=20)(small.model, small.x, small.y, targets=targets)
    assert torch.equal(result.prediction == targets, result.fooled)
    assert result.fooled.any()


def test_a_misclassified_sample_is_at_distance_zero_and_costs_no_gradient(small: Case) -> None:
    result = PGD(LINF)(small.model, small.x, (small.y + 1) % 4)
    assert result.fooled.all()
    assert (result.distance == 0).all()
    assert (result.gradient_evaluations == 0).all()
    assert torch.equal(result.examples, small.x)


class Scaled(nn.Module):
    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x) * self.factor
        return logits


def test_logits_scaled_by_a_large_factor_do_not_look_robust(small: Case) -> None:
    plain = PGD(LINF)(small.model, small.x, small.y)
    for factor in (1e2, 1e6):
        scaled = PGD(LINF)(Scaled(small.model, factor).eval(), small.x, small.y)
        assert scaled.robust <= plain.robust


class BreaksBeyond(nn.Module):
    """Return NaN for every image that differs from the given ones."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.model, self.x = model, x

    def forward(self, x: Tensor) -> Tensor:
        changed = (x[:, None] != self.x[None]).flatten(2).any(2).all(1)
        logits: Tensor = self.model(x)
        return logits.masked_fill(changed[:, None], torch.nan)


@pytest.mark.parametrize("norm", NORMS)
def test_non_finite_logits_are_reported_and_never_counted_as_success(norm: str, small: Case) -> None:
    for attack in attacks_for(norm, restarts=2):
        result = attack(BreaksBeyond(small.model, small.x).eval(), small.x, small.y)
        assert not result.fooled.any()
        assert result.nonfinite.all()
        assert torch.isinf(result.distance).all()
        assert torch.isfinite(result.examples).all()


class Cusp(nn.Module):
    """The same logits, but where a pixel is 0 its gradient is NaN (0 times infinity)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x) + 0 * x.sqrt().flatten(1).sum(dim=1, keepdim=True)
        return logits


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "apgd-t", "fab", "ddn", "fmn", "deepfool"])
def test_nan_entries_of_gradients_are_not_followed(name: str, small: Case) -> None:
    x = small.x.clone()
    x[:, 0] = 0
    with torch.no_grad():
        y = small.model(x).argmax(dim=1)
    result = make_attack(name, ThreatModel("l2", 2.0))(Cusp(small.model).eval(), x, y)
    assert torch.isfinite(result.examples).all()
    assert not result.nonfinite.any()
    assert result.fooled.any()


def test_a_model_that_is_not_finite_on_the_clean_images_is_reported(small: Case) -> None:
    result = PGD(LINF)(Scaled(small.model, float("nan")).eval(), small.x, small.y)
    assert result.nonfinite.all()
    assert (result.gradient_evaluations == 1).all()  # there is no gradient to follow
    assert not result.fooled.any()


def test_no_images_give_an_empty_result(small: Case) -> None:
    result = PGD(LINF)(small.model, small.x[:0], small.y[:0])
    assert len(result) == 0
    assert result.robust == 0


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(InputError, match="restarts must be a whole number of at least 1"):
        PGD(LINF, restarts=0)
    with pytest.raises(InputError, match="random_start=True"):
        PGD(LINF, restarts=2, random_start=False)
    with pytest.raises(InputError, match="step_size must be positive"):
        PGD(LINF, step_size=-1)
    with pytest.raises(InputError, match="batch_size"):
        PGD(LINF, batch_size=0)


def test_published_pgd_20_leaves_78_of_100_on_resnet_2b_and_the_default_76_as_the_ensemble(resnet: Case) -> None:
    published = PGD(ThreatModel("linf", 2 / 255), steps=20, schedule="constant")(*resnet)
    assert (published.distance == 0).sum() == 14
    assert published.robust == 78
    adaptive = PGD(ThreatModel("linf", 2 / 255), steps=20)(*resnet)
    assert adaptive.robust == 76
