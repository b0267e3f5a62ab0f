"""The move onto a hyperplane inside the box, against a convex solver."""

import cvxpy
import numpy as np
import pytest
import torch

from robustres.attacks.geometry.hyperplane import nearest_on_hyperplane

ORDER = {"l1": 1, "l2": 2, "linf": "inf"}


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_the_move_has_the_least_norm(norm: str, share: float) -> None:
    generator = torch.Generator().manual_seed(int(100 * share))
    x = torch.rand(2, 10, generator=generator, dtype=torch.float64)
    w = torch.randn(2, 10, generator=generator, dtype=torch.float64)
    largest = torch.where(w > 0, w * (1 - x), -w * x).sum(dim=1)
    r = torch.stack([share * largest[0], -share * torch.where(w < 0, -w * (1 - x), w * x).sum(dim=1)[1]])
    moves = nearest_on_hyperplane(x, w, r, norm)
    for move, image, normal, gap in zip(moves, x, w, r, strict=True):
        d = cvxpy.Variable(10)
        inside = [normal.numpy() @ d == float(gap), d >= -image.numpy(), d <= 1 - image.numpy()]
        least = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(d, ORDER[norm])), inside).solve(solver=cvxpy.CLARABEL)
        np.testing.assert_allclose(float(normal @ move), float(gap), rtol=2e-6)
        np.testing.assert_allclose(float(torch.linalg.vector_norm(move, ord=float(ORDER[norm]))), least, rtol=1e-5)
        assert ((image + move >= -1e-12) & (image + move <= 1 + 1e-12)).all()


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_a_hyperplane_out_of_reach_gives_the_nearest_corner(norm: str) -> None:
    x, w = torch.full((1, 4), 0.25), torch.tensor([[1.0, -1.0, 2.0, 0.0]])
    move = nearest_on_hyperplane(x, w, torch.tensor([100.0]), norm)
    torch.testing.assert_close(move, torch.tensor([[0.75, -0.25, 0.75, 0.0]]))
