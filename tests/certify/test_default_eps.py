"""The default eps of RMS normalisation is that of the model's own type, not of the float64 in which it is certified."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from robustres.certify import certify, lipschitz
from robustres.errors import InputError


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


class Lower(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.rms_norm(super().forward(x), (3,))


class Buffered(nn.Module):
    """Weights in buffers give a model its type too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(F.linear(x, self.weight), (3,))  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [Functional(4, 3), Lower(4, 3), Buffered()])
def test_the_function_has_the_eps_of_the_type_of_the_model(model: nn.Module) -> None:
    x = torch.rand(50, 4) * 1e-4
    report = lipschitz(model, (4,))
    assert torch.equal(certify(model, x, report=report).prediction, model(x).argmax(1))
    root = math.sqrt(torch.finfo(torch.float32).eps)
    weight = next(iter(model.state_dict().values())).double()
    assert report.upper == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)) / root, rel=1e-6)
    assert lipschitz(model.double(), (4,)).upper > 1e7
