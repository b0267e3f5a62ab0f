"""The stronger attacks: known results on a real network, few classes, targets, black-box search."""

import math
from typing import Any

import pytest
import torch

from robustres.attacks import APGD, DDN, FAB, Ensemble, Square, make_attack
from robustres.attacks.geometry import losses
from robustres.attacks.methods.apgd import checkpoints
from robustres.attacks.methods.square import window_sides
from robustres.attacks.registry import attack_class
from robustres.errors import InputError
from robustres.numerics import distance
from robustres.threat import NORMS, Norm, ThreatModel

from .conftest import Case, make_case

LINF = ThreatModel("linf", 8 / 255)
EPS: dict[Norm, float] = {"linf": 0.02, "l2": 0.3, "l1": 3.0}


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_ensemble_runs_with_few_classes_and_is_never_weaker_than_its_members(norm: str, classes: int) -> None:
    case = make_case(classes=classes, count=8)
    ensemble = Ensemble(ThreatModel(norm, EPS[norm]), steps=10, queries=30)  # type: ignore[arg-type]
    result = ensemble(*case)
    away = distance(result.examples.double() - case.x.double(), norm)
    assert (away <= EPS[norm]).all()
    assert torch.equal(case.model(result.examples).argmax(dim=1) != case.y, result.fooled)
    assert len(ensemble.members()) == 4
    assert result.robust <= min(member(*case).robust for member in ensemble.members())


def test_the_members_have_the_shared_settings_of_the_ensemble() -> None:
    shared: dict[str, Any] = {"seed": 3, "batch_size": 7, "precision": "bfloat16", "allow_training_mode": True}
    for attack in (Ensemble(LINF, **shared), *Ensemble(LINF, **shared).members()):
        assert attack.shared() == shared


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["apgd", "apgd-t", "fab", "square", "ddn", "fmn", "deepfool"])
def test_verdicts_do_not_depend_on_the_batch_size(name: str, norm: Norm) -> None:
    case = make_case(dtype=torch.float64, count=9)
    if norm not in attack_class(name).norms:
        pytest.skip(f"{name} is not defined for {norm}")
    threat = ThreatModel(norm, EPS[norm])
    whole = make_attack(name, threat, steps=12)(*case)
    parts = make_attack(name, threat, steps=12, batch_size=2)(*case)
    assert torch.equal(whole.fooled, parts.fooled)
    torch.testing.assert_close(whole.examples, parts.examples, rtol=0, atol=1e-7)


def test_apgd_checks_progress_at_the_published_steps() -> None:
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(1) == (1,)


def test_the_windows_of_square_shrink_by_the_published_schedule() -> None:
    sides = window_sides(10_000, 0.8, (3, 32, 32), "linf")
    assert sides[0] == round(math.sqrt(0.8 * 1024))
    assert sides[11] == round(math.sqrt(0.4 * 1024))
    assert sides[9_999] == round(math.sqrt(0.8 / 512 * 1024))
    assert all(side % 2 == 1 for side in window_sides(100, 0.8, (3, 33, 33), "l2"))


@pytest.mark.parametrize("norm", NORMS)
def test_square_needs_no_gradients_and_more_queries_never_lower_its_loss(norm: str, small: Case) -> None:
    threat = ThreatModel(norm, EPS[norm])  # type: ignore[arg-type]
    few, many = (Square(threat, steps=steps)(*small) for steps in (3, 60))
    assert (many.gradient_evaluations == 0).all()
    assert many.fooled.any()
    assert many.robust <= few.robust
    assert (many.loss >= few.loss)[~many.fooled].all()


def test_apgd_accepts_targets_of_the_caller_and_apgd_t_refuses_them(small: Case) -> None:
    targets = (small.y + 1) % 4
    result = APGD(ThreatModel("linf", 0.3), steps=20)(*small, targets=targets)
    assert torch.equal(result.prediction == targets, result.fooled)
    assert result.fooled.any()
    for name in ("apgd-t", "ensemble"):
        with pytest.raises(InputError, match="chooses its own targets"):
            make_attack(name, LINF)(*small, targets=targets)


def test_attacks_with_a_budget_refuse_an_unbounded_threat() -> None:
    for name in ("fgsm", "pgd", "apgd", "apgd-t", "square", "ensemble"):
        with pytest.raises(InputError, match="needs a finite eps"):
            make_attack(name, ThreatModel("linf", math.inf))


def test_unknown_names_settings_and_norms_are_named() -> None:
    with pytest.raises(InputError, match="unknown attack 'pdg'"):
        make_attack("pdg", LINF)
    with pytest.raises(InputError, match="pgd has no setting 'stepps'"):
        make_attack("pgd", LINF, stepps=3)
    with pytest.raises(InputError, match="ddn is defined for l2"):
        make_attack("ddn", LINF)


def test_a_search_in_bfloat16_is_verified_in_the_models_precision() -> None:
    case = make_case(count=10)
    threat = ThreatModel("linf", 0.02)
    result = make_attack("pgd", threat, precision="bfloat16")(*case)
    logits = case.model(result.examples)
    assert torch.equal(logits.argmax(dim=1) != case.y, result.fooled)
    assert torch.equal(logits.argmax(dim=1), result.prediction)
    assert not result.fooled.all()
    torch.testing.assert_close(result.loss, losses.margin(logits, case.y).detach(), rtol=1e-5, atol=1e-6)
    assert abs(result.robust - make_attack("pgd", threat)(*case).robust) <= 2


def test_every_class_is_tried_by_a_minimum_norm_attack(small: Case) -> None:
    unbounded = ThreatModel("l2", math.inf)
    one, all_of_them = FAB(unbounded, targets=1, steps=20)(*small), FAB(unbounded, targets=9, steps=20)(*small)
    assert (all_of_them.gradient_evaluations == 3 * 20).all()
    assert (all_of_them.distance <= one.distance).all()


@pytest.mark.parametrize(("eps", "robust"), [(2 / 255, 78), (8 / 255, 33)])
def test_apgd_on_cross_entropy_leaves_the_known_number_on_resnet_2b(eps: float, robust: int, resnet: Case) -> None:
    assert APGD(ThreatModel("linf", eps))(*resnet).robust == robust


def test_ddn_reaches_the_known_distance_on_resnet_2b(resnet: Case) -> None:
    correct = resnet.model(resnet.x).argmax(dim=1) == resnet.y
    result = DDN(ThreatModel("l2", math.inf), steps=46)(resnet.model, resnet.x[correct], resnet.y[correct])
    assert len(result) == 86
    assert result.gradient_evaluations.max() <= 46
    assert result.distance.quantile(0.5) <= 0.471


@pytest.mark.slow
@pytest.mark.parametrize(("eps", "robust"), [(2 / 255, 76), (8 / 255, 29)])
def test_the_standard_ensemble_leaves_the_known_number_on_resnet_2b(eps: float, robust: int, resnet: Case) -> None:
    assert Ensemble(ThreatModel("linf", eps))(*resnet).robust == robust
