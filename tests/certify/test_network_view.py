"""The view of a network in a report: its pieces as functions and its residual blocks, compared with the model."""

import pytest
import torch
from torch import nn

from robustres.certify import lipschitz, residual_views
from robustres.errors import InputError


class Branches(nn.Module):
    """x + W2 relu(W1 x), then a layer and a sum whose branch is not a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.outer(self.inner(x).relu())
        x = x + torch.maximum(self.left(x), self.right(x))
        return self.head(x)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


def test_the_pieces_run_one_after_another_to_the_models_own_logits(model: nn.Module) -> None:
    view = lipschitz(model, (4,), joint=False).view()
    x = torch.randn(5, 4, dtype=torch.float64)
    states = view.states(x)
    assert [piece.is_residual for piece in view.pieces] == [True, True, False]
    assert torch.allclose(states[-1], model.double()(x))
    assert torch.allclose(view.run(x, 0, 2), states[2])
    assert torch.allclose(view.skip(0, x) + view.branch(0, x), states[1])
    assert all(piece.upper == piece.row.upper for piece in view.pieces if piece.row is not None)


def test_a_refused_network_has_no_view() -> None:
    class Squares(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x

    with pytest.raises(InputError, match="refused"):
        lipschitz(Squares(), (4,), refuse="record").view()


def test_residual_blocks_are_read_with_their_maps_and_layers(model: nn.Module) -> None:
    block, other = residual_views(model.double(), (4,))
    assert isinstance(other, str)
    assert not isinstance(block, str)
    assert block.branch_end == ("outer",)
    assert block.shortcut_end == ()
    assert [layer.in_size for layer in block.layers] == [4, 5]
    assert block.bound(0.5, joint=False, effort=0.1) < block.bound(joint=False, effort=0.1)
    assert block.bound(joint=True, effort=0.1) <= block.bound(joint=False, effort=0.1)
