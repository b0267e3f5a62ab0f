"""A residual block with a linear branch is one linear map, and its row still shows both parts of the block."""

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import lipschitz


class LinearBlocks(nn.Module):
    """Blocks relu(x + W x) with a convolution W."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(depth))
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = torch.relu(x + branch(x))
        logits: Tensor = self.head(x.flatten(1))
        return logits


def dense(branch: nn.Module) -> Tensor:
    """The branch on 4 x 4 images as a matrix in float64, without its bias."""
    branch = branch.to(torch.float64)
    basis = torch.eye(48, dtype=torch.float64).reshape(48, 3, 4, 4)
    with torch.no_grad():
        return (branch(basis) - branch(torch.zeros_like(basis))).flatten(1).T


def test_the_row_shows_both_parts_and_the_norm_of_their_sum() -> None:
    torch.manual_seed(0)
    model = LinearBlocks(2)
    report = lipschitz(model, (3, 4, 4))
    rows = [row for row in report.blocks if row.is_residual]
    assert len(rows) == 2
    for row, branch in zip(rows, model.branches, strict=True):
        matrix = dense(branch)
        inner = float(torch.linalg.matrix_norm(matrix, 2))
        truth = float(torch.linalg.matrix_norm(torch.eye(48, dtype=torch.float64) + matrix, 2))
        assert row.method == "linear"
        assert row.shortcut == 1
        assert inner <= row.branch <= 1.1 * inner
        assert truth <= row.upper <= 1.1 * truth
        assert row.textbook == pytest.approx(row.shortcut + row.branch)
        assert row.lower <= truth * (1 + 1e-12)
