"""Models in half precision: the search is in float32, and the examples have the images' own type and are exact."""

import pytest
import torch

from robustres.attacks import attack_names, make_attack
from robustres.errors import InputError
from robustres.numerics import distance
from robustres.results import AVERAGE_CASE
from robustres.threat import ThreatModel

from .conftest import make_case, threat_for

SETTINGS = {"fgsm": {}, "ensemble": {"steps": 12, "queries": 12}, "hopskipjump": {"queries": 300}}
SETTINGS |= {name: {} for name in AVERAGE_CASE}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", attack_names())
def test_a_model_in_half_precision_does_not_look_more_robust(name: str, dtype: torch.dtype) -> None:
    case = make_case(count=10)
    threat = threat_for(name, linf=0.05, l2=0.6, l0=30)
    attack = make_attack(name, threat, **SETTINGS.get(name, {"steps": 12}))
    single = attack(*case)
    model, x = case.model.to(dtype), case.x.to(dtype)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    half = attack(model, x, y)
    assert half.examples.dtype == dtype
    with torch.no_grad():
        assert torch.equal(model(half.examples).argmax(dim=1) != y, half.fooled)
    away = distance(half.examples.double() - x.double(), threat.norm)
    assert (away[half.fooled] <= threat.eps).all()
    assert ((half.examples >= 0) & (half.examples <= 1)).all()
    assert abs(half.robust - single.robust) <= 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_are_cast_for_a_model_of_another_type_but_examples_are_not(dtype: torch.dtype) -> None:
    case = make_case(count=10)
    model = case.model.to(dtype)
    with torch.no_grad():
        y = model(case.x.to(dtype)).argmax(dim=1)
    found = make_attack("pgd", ThreatModel("linf", 0.05), steps=8)(model, case.x, y)
    assert found.examples.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with torch.no_grad():
        assert torch.equal(model(found.examples.to(dtype)).argmax(dim=1) != y, found.fooled)
    assert found.fooled.any()
    assert (distance(found.examples.double() - case.x.double(), "linf")[found.fooled] <= 0.05).all()


def test_the_advice_for_a_tiny_eps_can_be_followed() -> None:
    case = make_case(count=3)
    tiny = make_attack("pgd", ThreatModel("linf", 1e-9), steps=2)
    with pytest.raises(InputError, match=r"x.double\(\) and model.double\(\)"):
        tiny(*case)
    with pytest.raises(InputError, match=r"rounding of float32 .* model.double\(\)"):
        tiny(case.model, case.x.double(), case.y)
    assert len(tiny(case.model.double(), case.x.double(), case.y)) == 3
