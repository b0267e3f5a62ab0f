"""Constrained blocks against dense ground truth: the operator in float64 and its singular values by LAPACK."""

import pytest
import torch
from torch import nn

from robustres.errors import ModelError
from robustres.models import BLOCKS, MaxMin, materialise
from robustres.models.blocks.by_name import make_block
from robustres.models.blocks.orthogonal import orthonormal_rows
from robustres.models.blocks.site import Site
from robustres.models.blocks.transition import Transition
from robustres.models.constraints.operator_norm import Geometry, OperatorNorm

SITES = [Site(4, (6, 5)), Site(6, (5, 5), kernel=1, activation="maxmin"), Site(8, (1, 1), activation="maxmin")]


def jacobian_norms(block: nn.Module, site: Site, samples: int = 5) -> list[float]:
    """Largest singular value of the Jacobian at random points: a lower estimate of the Lipschitz constant."""
    block = block.double()
    generator = torch.Generator().manual_seed(1)
    norms = []
    for _ in range(samples):
        x = 3 * torch.randn(1, *site.shape, generator=generator, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(block, x)
        norms.append(float(torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), ord=2)))
    return norms


def after_random_steps(block: nn.Module, site: Site, steps: int = 15) -> nn.Module:
    """The block after training steps on noise, which give it arbitrary weights."""
    generator = torch.Generator().manual_seed(2)
    optimiser = torch.optim.SGD(block.parameters(), lr=0.5)
    for _ in range(steps):
        x = torch.randn(8, *site.shape, generator=generator)
        out = block(x)
        loss = (out - torch.randn(out.shape, generator=generator)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return block


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("name", ["linear", "orthogonal"])
def test_a_constrained_block_never_expands_once_materialised(name: str, site: Site) -> None:
    torch.manual_seed(0)
    plain = materialise(after_random_steps(make_block(name, site), site))
    assert max(jacobian_norms(plain, site)) <= 1 + 1e-9


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_block_keeps_the_shape_of_its_site(name: str) -> None:
    site = Site(4, (6, 5))
    assert make_block(name, site)(torch.zeros(2, *site.shape)).shape == (2, 4, 6, 5)


@pytest.mark.parametrize("name", ["plain", "residual", "preactivation"])
def test_ordinary_blocks_halve_the_image_and_double_the_width(name: str) -> None:
    site = Site(4, (7, 6), stride=2, batch_norm=True)
    assert make_block(name, site)(torch.zeros(2, *site.shape)).shape == (2, 8, 4, 3)


@pytest.mark.parametrize("site", [Site(4, (6, 5)), Site(8, (3, 3), activation="maxmin")], ids=str)
def test_an_orthogonal_convolution_preserves_lengths_away_from_the_border_and_never_expands(site: Site) -> None:
    torch.manual_seed(0)
    block = after_random_steps(make_block("orthogonal-convolution", site), site)
    stated = materialise(block).stated_bound(site.shape)  # type: ignore[operator]
    plain = materialise(block).double()
    assert max(jacobian_norms(plain, site)) <= stated.upper <= 1
    kernel = plain.branch.weight.detach().clone()  # type: ignore[union-attr, operator]
    kernel[:, :, 1, 1] += torch.eye(site.channels, dtype=torch.float64)
    x = torch.randn(2, *site.shape, dtype=torch.float64)
    inside = nn.functional.pad(x, (2, 2, 2, 2))
    image = nn.functional.conv2d(inside, kernel, padding=1)
    torch.testing.assert_close(image.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-4, atol=0)
    with pytest.raises(ModelError, match="kernels of side 3"):
        make_block("orthogonal-convolution", Site(4, (6, 5), kernel=1))


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_the_gradient_of_orthonormal_rows_is_that_of_finite_differences(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    rows = orthonormal_rows(matrix)
    gram = rows @ rows.T if shape[0] <= shape[1] else rows.T @ rows
    torch.testing.assert_close(gram, torch.eye(min(shape), dtype=torch.float64), atol=1e-4, rtol=0)
    assert torch.autograd.gradcheck(orthonormal_rows, (matrix,), atol=1e-5)


def test_a_transition_to_four_times_the_channels_is_an_isometry() -> None:
    torch.manual_seed(0)
    transition = materialise(Transition(Site(2, (4, 6), activation="maxmin"), 4)).double()
    x, y = torch.randn(2, 3, 2, 4, 6, dtype=torch.float64)
    linear = transition.convolution
    difference = (linear(x) - linear(y)).flatten(1).norm(dim=1)  # type: ignore[operator]
    torch.testing.assert_close(difference, (x - y).flatten(1).norm(dim=1), rtol=1e-4, atol=0)


def test_an_unknown_block_is_refused_with_a_list_of_the_known_ones() -> None:
    with pytest.raises(ModelError, match="block must be one of plain, residual"):
        make_block("dense", Site(4, (6, 5)))


def test_constrained_blocks_refuse_to_downsample() -> None:
    for name in ("linear", "orthogonal", "orthogonal-convolution"):
        with pytest.raises(ModelError, match="keeps its size"):
            make_block(name, Site(4, (6, 6), stride=2))


def test_maxmin_sorts_pairs_and_needs_an_even_width() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0, -4.0]])[..., None, None]
    assert MaxMin()(x).flatten().tolist() == [3.0, -2.0, 1.0, -4.0]
    with pytest.raises(ModelError, match="even width"):
        make_block("residual", Site(5, (4, 4), activation="maxmin"))
    with pytest.raises(ModelError, match="even width"):  # two channels are then compared with the same third
        MaxMin().lipschitz_bound((3,))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("geometry", [Geometry((3, 6, 5), 1, 1), Geometry((3, 7, 6), 2, 1), Geometry((3, 6, 6), 3, 0)])
def test_the_training_estimate_converges_to_the_dense_norm_from_below(geometry: Geometry, residual: bool) -> None:
    if residual and geometry.stride != 1:
        pytest.skip("only a convolution that keeps its size has a shortcut")
    torch.manual_seed(0)
    weight = torch.randn(3, 3, 3, 3, requires_grad=True)
    operator = OperatorNorm(geometry, residual=residual, steps=300).train()
    estimate = operator(weight)
    dense = torch.linalg.matrix_norm(operator.linear_map(weight).dense(), ord=2)
    assert estimate.item() == pytest.approx(dense.item(), rel=1e-3)
    assert estimate.item() <= dense.item() * (1 + 1e-5)
    operator.settle(weight.detach())
    assert operator.eval()(weight).item() >= dense.item()


def test_the_gradient_of_the_estimate_is_that_of_the_norm() -> None:
    torch.manual_seed(0)
    geometry = Geometry((2, 5, 5), 1, 1)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    operator = OperatorNorm(geometry, steps=2000).double().train()
    (estimated,) = torch.autograd.grad(operator(weight), weight)
    step = 1e-5 * torch.randn_like(weight)
    norms = [
        torch.linalg.matrix_norm(operator.linear_map(weight + sign * step).dense(), ord=2).item() for sign in (1, -1)
    ]
    assert (estimated * step).sum().item() == pytest.approx((norms[0] - norms[1]) / 2, rel=1e-3)


def test_a_transition_never_expands_and_states_its_norm() -> None:
    torch.manual_seed(0)
    site = Site(4, (6, 4), activation="maxmin")
    transition = after_random_steps(Transition(site), site)
    stated = transition.stated_bound(site.shape)
    plain = materialise(transition)
    assert plain(torch.zeros(1, *site.shape)).shape == (1, 8, 3, 2)
    assert max(jacobian_norms(plain, site)) <= stated.upper <= 1 + 1e-5
    with pytest.raises(ModelError, match="even sides"):
        Transition(Site(4, (5, 4)))


def test_the_gradient_of_maxmin_in_training_is_that_of_its_plain_form() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 6, 2, 2, generator=generator, dtype=torch.float64)
    layer = MaxMin()
    gradients = [torch.autograd.grad((layer.train(mode)(x) * weights).sum(), x)[0] for mode in (True, False)]
    torch.testing.assert_close(*gradients)
    assert torch.autograd.gradcheck(layer.train(), (x,))
    jacobians = [torch.func.jacrev(layer.train(mode))(x[:1].detach()) for mode in (True, False)]
    torch.testing.assert_close(*jacobians)
