"""A residual block written as a difference has a rounding error bound like one written as a sum."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.certify import certify


class Difference(nn.Module):
    """x - 2 W^T relu(W x), the form of a convex potential layer, or the same as a sum."""

    def __init__(self, *, as_sum: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(0.1 * torch.randn(3, 3, 3, 3))
        self.head = nn.Linear(48, 4)
        self.as_sum = as_sum

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(functional.conv2d(x, self.weight, padding=1))
        if self.as_sum:
            x = x + functional.conv_transpose2d(h, -2 * self.weight, padding=1)
        else:
            x = x - 2 * functional.conv_transpose2d(h, self.weight, padding=1)
        logits: Tensor = self.head(x.flatten(1))
        return logits


def test_a_difference_is_certified_like_the_sum_that_it_is() -> None:
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    difference, total = (certify(Difference(as_sum=flag).eval(), images) for flag in (False, True))
    assert torch.equal(difference.prediction, total.prediction)
    assert (difference.radius > 0).all()
    torch.testing.assert_close(difference.radius, total.radius, rtol=1e-3, atol=0)
