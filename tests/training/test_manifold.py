"""Moving orthogonal matrices on their manifold: the function kept on entering, the manifold kept on the way."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustres.data import load_data
from robustres.models import materialise, preset, residual_net
from robustres.models.blocks.orthogonal import Factor
from robustres.training import Recipe, train
from robustres.training.bfloat16 import multiplies_bfloat16
from robustres.training.manifold import ManifoldAdam, Point, enter_manifold, leave_manifold, retract

BLOCKS = {
    "orthogonal": {"stem_kernel": 8, "stem_stride": 8},
    "orthogonal-convolution": {"stem_kernel": 2, "stem_stride": 2, "downsample": (1,), "growth": (4,)},
}


def network(block: str) -> nn.Module:
    return residual_net(
        block=block, depth=2, width=8, image_shape=(1, 8, 8), classes=3, activation="maxmin", **BLOCKS[block]
    )


def distance(matrix: Tensor) -> float:
    """How far a matrix is from orthonormal rows, or columns where it is tall."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max())


@pytest.mark.parametrize("block", BLOCKS)
def test_entering_and_leaving_keep_the_function(block: str) -> None:
    model, x = network(block).double(), torch.rand(5, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        points = enter_manifold(model)
        assert points
        torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)  # the ridge of the Cholesky factor
        leave_manifold(model)
        torch.testing.assert_close(model(x), before, rtol=0, atol=1e-3)
        assert model.state_dict().keys() == network(block).state_dict().keys()


@pytest.mark.parametrize("block", BLOCKS)
def test_steps_stay_on_the_manifold_and_lower_the_loss(block: str) -> None:
    torch.manual_seed(0)
    model = network(block).double().train()
    x, y = torch.rand(32, 1, 8, 8, dtype=torch.float64), torch.arange(32) % 3
    points = enter_manifold(model)
    optimiser = ManifoldAdam(points, lr=1e-2)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(distance(matrix) < 1e-2 for point in points for _, matrix in point.matrices())
    for point in points:
        retract(point, 6)
    assert all(distance(matrix) < 1e-12 for point in points for _, matrix in point.matrices())


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_the_nearest_orthogonal_matrix_is_found(shape: tuple[int, int], adaptive: bool) -> None:
    """max <X, A> over orthonormal X is the nuclear norm of A (von Neumann), reached at the polar factor."""
    generator = torch.Generator().manual_seed(shape[0])
    target = torch.randn(shape, generator=generator, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(target, full_matrices=False)
    start = u @ vh if shape[0] != shape[1] else (u @ torch.matrix_exp(_skew(shape[0], generator)) @ vh)
    noise = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    parameter = nn.Parameter((start + noise) if shape[0] != shape[1] else start.clone())
    point = Point(parameter, (Factor(slice(0, shape[0]), "rotation" if shape[0] == shape[1] else "isometry"),))
    with torch.no_grad():
        v, _, wh = torch.linalg.svd(parameter, full_matrices=False)
        parameter.copy_(v @ wh)
    optimiser = ManifoldAdam([point], lr=2e-2, adaptive=adaptive)
    for step in range(600):
        optimiser.param_groups[0]["lr"] = 2e-2 * (1 - step / 600)
        optimiser.zero_grad()
        (-(parameter * target).sum()).backward()
        optimiser.step()
    retract(point, 6)
    assert float((parameter.detach() * target).sum()) == pytest.approx(float(s.sum()), rel=1e-4)


def _skew(size: int, generator: torch.Generator) -> Tensor:
    free = 0.2 * torch.randn(size, size, generator=generator, dtype=torch.float64)
    return free - free.T


def test_a_materialised_network_is_what_was_trained() -> None:
    torch.manual_seed(0)
    model = network("orthogonal").train()
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 3
    points = enter_manifold(model)
    optimiser = ManifoldAdam(points)
    for _ in range(25):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    trained = model.eval()(x)
    leave_manifold(model)
    torch.testing.assert_close(materialise(model)(x), trained, rtol=0, atol=2e-3)


@pytest.mark.parametrize("shape", [(60, 60), (40, 90), (90, 40)])
def test_steps_far_too_large_end_on_the_manifold_all_the_same(shape: tuple[int, int]) -> None:
    """Adam's first step has the size of the rate in every entry: of rank one, its norm grows with the matrix."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64), generator=generator))
    kind = "rotation" if shape[0] == shape[1] else "isometry"
    point = Point(parameter, (Factor(slice(0, shape[0]), kind),))
    optimiser = ManifoldAdam([point], lr=0.1)
    left, right = (torch.randn(side, generator=generator, dtype=torch.float64) for side in shape)
    for _ in range(30):
        parameter.grad = left[:, None] * right
        optimiser.step()
    retract(point, 30)
    assert distance(parameter.detach()) < 1e-9


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_coarse_products_follow_the_fine_ones_and_leave_the_manifold_no_further(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = nn.init.orthogonal_(torch.empty(shape), generator=generator)
    target = nn.init.orthogonal_(torch.empty(shape), generator=generator)
    kind = "rotation" if shape[0] == shape[1] else "isometry"
    ends = []
    for coarse in (False, True):
        parameter = nn.Parameter(start.clone())
        optimiser = ManifoldAdam([Point(parameter, (Factor(slice(0, shape[0]), kind),))], lr=5e-3, coarse=coarse)
        for _ in range(50):
            parameter.grad = -target
            optimiser.step()
        assert distance(parameter.detach()) < 1e-3
        ends.append(parameter.detach())
    moved = float((ends[0] - start).norm())
    assert float((ends[1] - ends[0]).norm()) < 0.05 * moved


@pytest.mark.parametrize(
    ("name", "tiles", "worthwhile"), [("AMD", False, True), ("Intel", False, False), ("Intel", True, True)]
)
def test_bfloat16_is_used_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, name: str, tiles: bool, worthwhile: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": f"{name} processor"}, raising=False)
    assert multiplies_bfloat16("cpu") is worthwhile


def test_without_products_in_bfloat16_mixed_precision_is_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = load_data("digits", split="train", limit=60), load_data("digits", split="validation", limit=30)
    recipe = Recipe(loss="emma", epochs=1, optimiser="manifold", mixed_precision=True)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not multiplies_bfloat16("cpu")
    assert multiplies_bfloat16("cuda")
    mixed, full = preset("constrained-tiny"), preset("constrained-tiny")
    train(mixed, *sets, recipe)
    train(full, *sets, replace(recipe, mixed_precision=False))
    assert all(torch.equal(value, full.state_dict()[name]) for name, value in mixed.state_dict().items())
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    coarse = preset("constrained-tiny")
    train(coarse, *sets, recipe)
    assert not all(torch.equal(value, full.state_dict()[name]) for name, value in coarse.state_dict().items())
