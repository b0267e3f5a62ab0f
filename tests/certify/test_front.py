"""What users write: models in unusual types and modes, arguments of the wrong kind; refusals that name the cause."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from robustres.certify import certify, lipschitz
from robustres.errors import InputError, ModelError, PrecisionError, UnsupportedOperationError
from tests.certify.apply import Apply


def plane() -> nn.Module:
    """A classifier of images of two pixels."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(2, 2))


class Narrower(nn.Module):
    """A model that computes in fewer digits than float32, or something else in float32 than in float64."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.layer = how, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).to(self.layer.weight.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.how == "autocast"):
            answer: Tensor = self.layer(x)
        return answer * (1.01 if self.how == "float32" and x.element_size() == 4 else 1)


@pytest.mark.parametrize("how", ["autocast", "bfloat16", "float32"])
def test_float32_refuses_models_that_compute_otherwise(how: str) -> None:
    model, x = Narrower(how), torch.rand(2, 1, 2, 2)
    model = model.bfloat16() if how == "bfloat16" else model
    with pytest.raises(PrecisionError, match=how):
        certify(model, x, dtype=torch.float32)
    assert bool((certify(model, x).radius > 0).any())
    if how != "float32":
        with pytest.raises(PrecisionError, match=how):
            certify(model, x, certificate="local", dtype=torch.float32, seconds=0.1)


def test_what_cannot_be_certified_is_said_of_the_argument_at_fault() -> None:
    model, x = plane(), torch.rand(1, 1, 1, 2)
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        certify(model, x)
    with torch.inference_mode():
        inferred = torch.rand(1, 1, 1, 2)
    assert float(certify(model, inferred, certificate="local", seconds=0.1).radius) > 0
    with pytest.raises(InputError, match="meta"):
        lipschitz(plane().to("meta"), (1, 1, 2))
    report = lipschitz(model, (1, 1, 2))
    with pytest.raises(InputError, match="report is for inputs of shape"):
        certify(model, torch.rand(1, 1, 2, 2), report=report, certificate="local")
    with pytest.raises(ModelError, match=r"must be an nn\.Module, got str"):
        certify("net.onnx", x)  # type: ignore[arg-type]


def test_several_values_for_one_place_are_refused() -> None:
    def put(places: list[int]) -> Callable[[Tensor], Tensor]:
        index = torch.tensor(places)
        return lambda x: torch.zeros_like(x).scatter(1, index.expand(len(x), 3), x)

    assert lipschitz(Apply(put([2, 0, 1])), (3,)).upper == 1
    with pytest.raises(UnsupportedOperationError, match="several values for one place"):
        lipschitz(Apply(put([2, 2, 1])), (3,))


def test_dropout_that_drops_nothing_is_the_identity() -> None:
    assert lipschitz(Apply(lambda x: F.dropout(x, 0.0)), (3,)).upper == 1


def test_numbers_that_are_drawn_with_a_fixed_seed_are_refused_as_random() -> None:
    def projected(x: Tensor) -> Tensor:
        drawn = torch.Generator().manual_seed(0)
        return x @ torch.randn(3, 3, generator=drawn, dtype=x.dtype)

    with pytest.raises(UnsupportedOperationError, match=r"aten\.randn which draws random numbers"):
        lipschitz(Apply(projected), (3,))


def test_gates_are_refused_as_products() -> None:
    cell = nn.LSTM(3, 2, batch_first=True).double().requires_grad_(False)
    with pytest.raises(UnsupportedOperationError, match=r"aten\.lstm whose gates multiply"):
        lipschitz(Apply(lambda x: cell(x)[0]), (2, 3))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_local_certificates_end_where_the_answer_is_undefined(norm: Any) -> None:
    model = nn.Sequential(nn.Flatten(), Apply(lambda x: torch.sqrt(x - 0.2)), nn.Linear(2, 2))
    x = torch.tensor([[[[0.5, 0.3]]], [[[0.25, 0.9]]]])
    model[2].bias.data = torch.tensor([50.0, 0.0])
    radius = certify(model, x, norm=norm, certificate="local", seconds=0.2).radius
    edge = x.double().flatten(1).amin(1) - 0.2
    assert bool((radius > 0.8 * edge).all())
    assert bool((radius < edge).all())
