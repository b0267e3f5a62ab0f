"""Models in half precision: the search is in float32, what it returns is in the model's own type and exact."""

import pytest
import torch

from robustres.attacks import attack_names, make_attack
from robustres.numerics import distance
from robustres.threat import ThreatModel

from .conftest import make_case

SETTINGS = {"fgsm": {}, "ensemble": {"steps": 12, "queries": 12}}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", attack_names())
def test_a_model_in_half_precision_does_not_look_more_robust(name: str, dtype: torch.dtype) -> None:
    case = make_case(count=10)
    threat = ThreatModel("l2", 0.6) if name == "ddn" else ThreatModel("linf", 0.05)
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
