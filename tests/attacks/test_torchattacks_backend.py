"""torchattacks behind our interface: its names with our guarantees."""

import inspect

import pytest
import torch
import torchattacks

from robustres.attacks import make_attack, torchattacks_names
from robustres.attacks.methods.torchattacks_backend import OTHER_BALLS
from robustres.errors import InputError
from robustres.numerics import distance
from robustres.threat import ThreatModel

from .conftest import Case, make_case
from .test_state_safety import same, snapshot

# Settings that make slow attacks fast; each attack gets those that it accepts.
FEW = {"steps": 3, "n_queries": 4, "max_iterations": 10, "binary_search_steps": 2, "inf_batch": 2, "popsize": 2}

LINF = ThreatModel("linf", 0.03)


@pytest.mark.parametrize("method", ["FGSM", "PGD", "MIFGSM", "APGD", "FAB", "Square", "TPGD", "CW", "VANILA"])
def test_its_examples_lie_in_the_ball_and_are_verified(method: str, small: Case) -> None:
    settings = {} if method in ("FGSM", "VANILA") else {"n_queries": 20} if method == "Square" else {"steps": 5}
    result = make_attack(f"torchattacks:{method}", LINF, **settings)(*small)
    assert (distance(result.examples.double() - small.x.double(), "linf") <= 0.03).all()
    assert torch.equal(small.model(result.examples).argmax(dim=1) != small.y, result.fooled)
    if method == "VANILA":
        assert result.robust == len(small.x)
    elif method == "PGD":
        assert result.robust < len(small.x)
        assert (result.gradient_evaluations == 5).all()


def test_the_same_seed_gives_the_same_examples(small: Case) -> None:
    first, second = (make_attack("torchattacks:PGD", LINF, seed=3)(*small) for _ in range(2))
    assert torch.equal(first.examples, second.examples)


def test_targets_are_passed_on(small: Case) -> None:
    targets = (small.y + 1) % 4
    result = make_attack("torchattacks:PGD", ThreatModel("linf", 0.3), steps=20)(*small, targets=targets)
    assert torch.equal(result.prediction == targets, result.fooled)
    assert result.fooled.any()
    with pytest.raises(InputError, match="no targeted form"):
        make_attack("torchattacks:GN", LINF)(*small, targets=targets)


def test_unknown_methods_settings_and_norms_are_refused() -> None:
    with pytest.raises(InputError, match="no attack 'PDG'"):
        make_attack("torchattacks:PDG", LINF)
    with pytest.raises(InputError, match="no setting 'stepps'"):
        make_attack("torchattacks:PGD", LINF, stepps=1)
    with pytest.raises(InputError, match="works in l2, not linf"):
        make_attack("torchattacks:PGDL2", LINF)


def test_every_attack_of_the_package_is_offered() -> None:
    assert len(torchattacks_names()) == 37


@pytest.mark.parametrize("method", torchattacks_names())
def test_every_attack_of_the_package_works_and_leaves_everything_unchanged(method: str) -> None:
    case = make_case(classes=10, count=4)  # JSMA works with ten classes only
    known = inspect.signature(getattr(torchattacks, method)).parameters
    threat = ThreatModel(OTHER_BALLS.get(method, "linf"), 0.02)  # type: ignore[arg-type]
    attack = make_attack(f"torchattacks:{method}", threat, **{k: v for k, v in FEW.items() if k in known})
    before = snapshot(case.model)
    result = attack(*case)
    assert same(before, snapshot(case.model))
    assert (distance(result.examples.double() - case.x.double(), threat.norm) <= threat.eps).all()
    assert torch.equal(case.model(result.examples).argmax(dim=1) != case.y, result.fooled)


def test_an_attack_that_assumes_ten_classes_says_so(small: Case) -> None:
    with pytest.raises(InputError, match=r"assumes 10 classes, the model has 4"):
        make_attack("torchattacks:JSMA", LINF)(*small)
