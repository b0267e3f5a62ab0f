"""The move onto a hyperplane inside the box, against a convex solver."""

import cvxpy
import numpy as np
import pytest
import torch

from robustres.attacks.geometry.hyperplane import Normals, nearest_on_hyperplane

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


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_move_from_nearly_the_same_image_starts_at_the_stretch_of_the_last_one(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.rand(3, 500, generator=generator).round(decimals=1), torch.randn(3, 500, generator=generator)
    normals, r = Normals(w, norm), torch.tensor([60.0, -60.0, 1.0])
    move, stretch = normals.move(x, r, torch.ones(3), tolerance=1e-5)
    assert (stretch[:2] > 1.1).all()
    again, _ = normals.move(x, r, stretch, tolerance=1e-5)
    torch.testing.assert_close(again, move, rtol=1e-3, atol=1e-5)
    far, _ = normals.move(x, r, 3 * stretch, tolerance=1e-5)  # a start beyond the root
    torch.testing.assert_close(torch.linalg.vecdot(w, far), r, rtol=1e-4, atol=0)


@pytest.mark.parametrize("tolerance", [1e-6, 1e-2])
def test_a_loose_move_in_l1_reaches_the_hyperplane_and_is_hardly_longer(tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.rand(4, 3000, generator=generator), torch.randn(4, 3000, generator=generator)
    w[3] = w[3].round()  # equal weights
    r = torch.tensor([0.5, -20.0, 500.0, 40.0])
    move, _ = Normals(w, "l1").move(x, r, torch.ones(4), tolerance=tolerance)
    torch.testing.assert_close(torch.linalg.vecdot(w, move), r, rtol=1e-4, atol=0)
    for d, image, normal, gap in zip(move, x, w, r, strict=True):
        room = torch.where(normal * gap > 0, 1 - image, image)
        weight, order = normal.abs().sort(descending=True)
        gain = (weight * room[order]).cumsum(0)
        last = int((gain < gap.abs()).sum())
        before = gain[last - 1] if last else 0
        least = room[order][:last].sum() + (gap.abs() - before) / weight[last]
        assert least * (1 - 1e-4) <= d.abs().sum() <= least * (1 + tolerance + 1e-4)
