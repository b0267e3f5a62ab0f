"""Operations that are replaced by their definitions compute the same, also where an example does not show it."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from robustres.certify import lipschitz
from robustres.errors import UnsupportedOperationError


class Hidden(nn.Module):
    """x + 5 h, h a function of relu(x - 30): 0 for the inputs that captures are compared at."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(x - 30)
        match self.name:
            case "complex":
                h = torch.complex(h, h).real
            case "polar":
                h = torch.polar(h, h * 0).abs()
            case "cumprod":
                h = torch.cumprod(h[:, :1], 1, dtype=torch.float16).to(x.dtype)
            case "prod":
                h = torch.prod(h[:, :1], 1, keepdim=True, dtype=torch.float32).to(x.dtype)
            case "exact prod":
                h = torch.prod(h[:, :1], 1, keepdim=True, dtype=torch.float64)
        return x + 5 * h


@pytest.mark.parametrize("name", ["complex", "polar"])
def test_a_definition_that_writes_into_a_part_of_a_value_is_not_lost(name: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=f"aten.{name}"):  # the constant is 6, not 1
        lipschitz(Hidden(name), (3,))


@pytest.mark.parametrize("name", ["cumprod", "prod"])
def test_a_product_in_another_type_rounds(name: str) -> None:
    with pytest.raises(UnsupportedOperationError, match="which rounds"):
        lipschitz(Hidden(name), (3,))


def test_a_product_in_the_type_of_the_network_is_bounded() -> None:
    assert lipschitz(Hidden("exact prod"), (1,)).upper == pytest.approx(6.0)


def test_an_operation_whose_definition_has_no_shapes_is_refused_by_its_own_name() -> None:
    class Solved(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.solve(self.weight, x[:, :, None])[:, :, 0]

    with pytest.raises(UnsupportedOperationError, match="linalg_solve"):
        lipschitz(Solved(3, 3), (3,))
