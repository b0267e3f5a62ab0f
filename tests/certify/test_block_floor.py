"""The lower estimate is that of the block as it is; the value attained with free slopes is a separate figure."""

import torch
from torch import Tensor, nn

from robustres.certify import lipschitz


class Shy(nn.Module):
    """x + 2 relu(x - 10) on [0, 1], whose slope there is 1; the second slope is attained only far outside."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
            self.up.bias.fill_(bias)
            self.down.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(x)))
        return out


def test_a_block_whose_slopes_never_occur_together_has_an_estimate_below_its_constant() -> None:
    """relu(z) - relu(-z) with biases of -1/2: both slopes never occur together, so the constant is 2, not 3."""
    model = nn.Sequential(nn.Flatten(), Shy(-0.5), nn.Linear(2, 2))
    images = torch.rand(9, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    for given in (None, images):
        (row,) = lipschitz(model, (1, 1, 2), images=given).residual_blocks
        assert row.lower <= 2 + 1e-9
        assert row.floor > 2.9
        assert row.floor <= row.upper
        assert row.tightness >= row.upper / 2 - 1e-6
