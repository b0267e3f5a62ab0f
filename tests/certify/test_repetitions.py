"""Repeated operations are one value; single numbers per sample are values like others."""

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import certify, lipschitz


class Written(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.function = nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(self.layer, x.flatten(1))  # type: ignore[operator]
        return out


PROGRAMS = {
    "where that computes its argument three times": lambda layer, x: torch.where(
        layer(x) > 0, layer(x), 0.1 * layer(x)
    ),
    "the largest taken off": lambda layer, x: layer(x) - layer(x).max(1).values[:, None],
    "the smallest taken off": lambda layer, x: layer(x) - layer(x).amin(1, keepdim=True),
    "the sum of squares of nothing": lambda layer, x: layer(x) + layer(x)[:, :0].sum(1)[:, None],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_bounds_for_repeated_operations_and_single_numbers_exceed_the_attained_values(name: str) -> None:
    model = Written(PROGRAMS[name]).double()
    report = lipschitz(model, (1, 2, 2))
    points = torch.randn(200, 1, 2, 2, dtype=torch.float64)
    jacobians = torch.vmap(torch.func.jacrev(lambda z: model(z[None])[0]))(points).reshape(200, 3, 4)
    attained = float(torch.linalg.matrix_norm(jacobians.detach(), ord=2).max())
    assert attained <= report.upper * (1 + 1e-12)
    assert report.upper <= 3 * attained
    assert (certify(model, points[:3].sigmoid(), report=report).radius > 0).all()


def test_a_leaky_relu_that_is_written_out_has_the_bound_of_the_layer() -> None:
    model = Written(PROGRAMS["where that computes its argument three times"]).double()
    plain = nn.Sequential(nn.Flatten(), model.layer, nn.LeakyReLU(0.1)).double()
    found, known = (lipschitz(network, (1, 2, 2), lower_steps=0).upper for network in (model, plain))
    assert found == pytest.approx(known, rel=1e-5)
