"""A model of float32 that names its own type in its code is certified as it is written."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from robustres.certify import audit, certify, lipschitz
from robustres.errors import InputError, ModelError, UnsupportedOperationError


class Written(nn.Module):
    """A linear map behind a function."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.head = nn.Linear(4, 3)
        self.head.weight.data.copy_(torch.linspace(-1, 1, 12).reshape(3, 4))
        self.factor, self.kernel = torch.tensor(0.3), torch.full((1, 1, 3), 1 / 3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.function(self, x))
        return answer


EPS = torch.finfo(torch.float32).eps
THIRDS = torch.tensor([[2.0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 2]])  # of the smoothing below
WRITTEN: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], float | Tensor]] = {
    "float": (lambda m, x: x.float(), 1.0),
    "to": (lambda m, x: 2 * x.to(torch.float32), 2.0),
    "legacy type": (lambda m, x: x.type(torch.FloatTensor), 1.0),
    "name of a legacy type": (lambda m, x: x.type("torch.FloatTensor"), 1.0),
    "type of a sum": (lambda m, x: x + 0 * x.sum(1, keepdim=True, dtype=torch.float32), 1.0),
    "constant kernel": (
        lambda m, x: F.conv1d(F.pad(x[:, None], (1, 1), "replicate"), m.kernel)[:, 0],
        THIRDS * torch.tensor(1 / 3),
    ),
    "kernel made on the way": (
        lambda m, x: F.conv1d(F.pad(x[:, None], (1, 1), "replicate"), torch.ones(1, 1, 3))[:, 0],
        THIRDS,
    ),
    "reciprocal": (lambda m, x: x * (1 / m.factor), 1 / float(torch.tensor(0.3))),
    "matrix": (lambda m, x: F.linear(x, torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))), 2.0),
    "type of the input": (lambda m, x: x * torch.full((4,), 0.1, dtype=x.dtype), 0.1),
    "branch on the type": (lambda m, x: 10 * x if x.dtype == torch.float32 else x, 10.0),
    "eps of the type": (lambda m, x: x * (torch.finfo(x.dtype).eps * 1e7), EPS * 1e7),
    "from NumPy": (lambda m, x: x * torch.from_numpy(np.full(4, 0.1, dtype="float32")), float(torch.tensor(0.1))),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_bound_is_that_of_the_code_in_its_type(name: str) -> None:
    function, scale = WRITTEN[name]
    model = Written(function).eval()
    weight = model.head.weight.detach().double()
    matrix = weight @ scale.double() if isinstance(scale, Tensor) else scale * weight
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    x = torch.rand(20, 4)
    report = lipschitz(model, (4,))
    assert report.upper == pytest.approx(truth, rel=1e-9)
    assert torch.equal(certify(model, x, report=report).prediction, model(x).argmax(1))
    assert audit(model, (4,), claimed=truth * (1 + 1e-4), restarts=2).verdict == "proven"
    assert audit(model, (4,), claimed=truth * (1 - 1e-2), restarts=2).verdict == "refuted"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_16_bits_may_name_its_type_too(dtype: torch.dtype) -> None:
    named = Written(lambda m, x: (x.bfloat16() if dtype == torch.bfloat16 else x.half()).to(dtype)).to(dtype).eval()
    truth = float(torch.linalg.matrix_norm(named.head.weight.detach().double(), 2))
    assert lipschitz(named, (4,)).upper == pytest.approx(truth, rel=1e-9)


def test_a_cast_to_a_narrower_type_than_the_models_own_rounds() -> None:
    with pytest.raises(UnsupportedOperationError, match="float16, which rounds"):
        lipschitz(Written(lambda m, x: x.half().float()), (4,))
    double = Written(lambda m, x: x.float().double()).double()
    with pytest.raises(UnsupportedOperationError, match="float32, which rounds"):
        lipschitz(double, (4,))


def test_the_report_of_a_model_is_not_that_of_its_copy_in_float64() -> None:
    model = Written(lambda m, x: 10 * x if x.dtype == torch.float32 else x).eval()
    report, x = lipschitz(model, (4,)), torch.rand(3, 4)
    double = copy.deepcopy(model).double()
    with pytest.raises(InputError, match="another model"):
        certify(double, x.double(), report=report)
    assert lipschitz(double, (4,)).upper == pytest.approx(report.upper / 10)
    slightly = Written(lambda m, x: x + 1e-4 * x.float().double()).eval()
    report = lipschitz(slightly, (4,))
    with pytest.raises(InputError, match="another model"):  # which rounds by less than its answers show
        certify(slightly.double(), x.double(), report=report)
    with pytest.raises(ModelError, match="does not run in float64"):
        lipschitz(Written(lambda m, x: x.float()).double(), (4,))


READING: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "bytes of an element": lambda m, x: x * (x.element_size() - 3),
    "name of the legacy type": lambda m, x: 3 * x if x.type() == "torch.FloatTensor" else x,
    "type of a result": lambda m, x: 3 * x if torch.result_type(x, 1.0) == torch.float32 else x,
    "type in NumPy": lambda m, x: 3 * x if m.head.weight.numpy().dtype == np.float32 else x,
    "next number": lambda m, x: x * (torch.nextafter(torch.ones(4), torch.full((4,), 2.0)) - 1) * 1e7,
    "rounding": lambda m, x: x * (torch.tensor(2.0**24) + 1 - 2**24 + 0.5),
    "wider type": lambda m, x: 3 * x if x.double().dtype == torch.float64 else x,
    "wider buffer": lambda m, x: 3 * x if x.dtype == torch.float32 else x * m.wide.float(),
}


@pytest.mark.parametrize("name", READING)
def test_what_the_copy_in_float64_cannot_repeat_is_refused(name: str) -> None:
    model = Written(READING[name])
    model.register_buffer("wide", torch.ones(4, dtype=torch.float64) if name == "wider buffer" else torch.ones(4))
    with pytest.raises(ModelError, match="different answers in float32 and in float64"):
        lipschitz(model, (4,))


def test_rounding_is_no_other_answer() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(30)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert lipschitz(nn.Sequential(*layers, nn.Linear(8, 3)).to(dtype), (8,), lower_steps=0).upper > 0
    far = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    far[0].weight.data.mul_(1e30)
    far[1].weight.data.mul_(1e30)  # overflows in float32
    assert lipschitz(far, (4,), lower_steps=0).upper > 1e59
