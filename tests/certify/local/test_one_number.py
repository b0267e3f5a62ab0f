"""Local certificates of networks with one number per sample, one output, or images in another type."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import certify
from robustres.errors import UnsupportedOperationError


class Numbers(nn.Module):
    """A function of three values of a dense layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.function = nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    "function",
    [
        lambda h: torch.stack([h[:, 0].relu() * h[:, 1], torch.sigmoid(h[:, 1])], 1),
        lambda h: torch.stack([h.norm(dim=1), h[:, 0].abs()], 1),
        lambda h: torch.stack([(h[:, 0].abs() * 2 - 0.1).relu() + h[:, 1], h[:, 1] + 0.1], 1),
        lambda h: torch.softmax(20 * h, 1) * (0.5 - h[:, :1]).relu(),  # a value that copies another, and is read twice
    ],
)
def test_balls_contain_no_other_answer(function: Callable[[Tensor], Tensor], norm: str) -> None:
    model = Numbers(function)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 4, dtype=torch.float64, generator=generator)
    found = certify(model, x, norm=norm, certificate="local", seconds=0.1)  # type: ignore[arg-type]
    assert bool((found.radius > 0).any())
    directions = torch.randn(400, 4, dtype=torch.float64, generator=generator)
    size = directions.norm(dim=1, keepdim=True) if norm == "l2" else directions.abs().amax(1, keepdim=True)
    exact = Numbers(function).double()
    for image, radius, answer in zip(x, found.radius, found.prediction, strict=True):
        inside = (image + radius * directions / size).clamp(0, 1)
        assert bool((exact(inside).argmax(1) == answer).all())


def test_one_output_is_no_choice() -> None:
    with pytest.raises(UnsupportedOperationError, match="not a choice between two or more classes"):
        certify(Numbers(lambda h: h[:, :1].relu()), torch.rand(2, 4), certificate="local", seconds=0.1)
