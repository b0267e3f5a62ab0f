"""The default eps of RMS normalisation is that of the model's own type, not of the float64 in which it is certified."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from robustres.certify import certify, lipschitz
from robustres.errors import InputError, UnsupportedOperationError


def normalising() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.RMSNorm(3), nn.Linear(3, 3)).eval()
    model[0].weight.data *= 1e-4  # of the size of the root of float32's eps
    return model


def test_predictions_are_those_of_the_model_in_its_type() -> None:
    model, x = normalising(), torch.rand(50, 4)
    report = lipschitz(model, (4,))
    assert torch.equal(certify(model, x, report=report).prediction, model(x).argmax(1))
    double = copy.deepcopy(model).double()
    with pytest.raises(InputError, match="another model"):
        certify(double, x, report=report)
    assert torch.equal(certify(double, x).prediction, double(x.double()).argmax(1))
    assert lipschitz(double, (4,)).upper > 1e3 * report.upper


class Functional(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(super().forward(x), (3,))


def test_the_function_asks_for_an_eps_unless_the_model_is_in_float64() -> None:
    with pytest.raises(UnsupportedOperationError, match="give eps"):
        lipschitz(Functional(4, 3), (4,))
    assert lipschitz(Functional(4, 3).double(), (4,)).upper > 1e7


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(F.linear(x, self.weight), (3,))  # type: ignore[arg-type]


def test_a_model_that_keeps_its_weights_in_buffers_has_a_type_too() -> None:
    with pytest.raises(UnsupportedOperationError, match="give eps"):
        lipschitz(Buffered(), (4,))
    assert lipschitz(Buffered().double(), (4,)).upper > 1e7
