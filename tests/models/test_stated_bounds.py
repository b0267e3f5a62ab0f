"""Stated bounds of the blocks against dense ground truth after training on noise, and properties of each block."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.certify import HasLipschitzBound, lipschitz
from robustres.errors import ModelError
from robustres.models import BLOCKS, materialise
from robustres.models.blocks.backward_euler import BackwardEulerBlock, _BackwardEuler
from robustres.models.blocks.by_name import ORDINARY, make_block
from robustres.models.blocks.convex_potential import UnitRows
from robustres.models.blocks.euler import InvertibleBlock
from robustres.models.blocks.highway import HighwayBlock
from robustres.models.blocks.joint_block import JointBlock
from robustres.models.blocks.orthogonal_convolution import SIDE
from robustres.models.blocks.site import Site
from robustres.models.blocks.stated import map_of
from robustres.models.constraints.operator_norm import Geometry

CONSTRAINED = sorted(BLOCKS.keys() - ORDINARY)
MAXMIN = {"linear", "orthogonal", "orthogonal-convolution", "spectral", "scaled", "convex", "euler", "invertible"}
SITES = [Site(4, (5, 4)), Site(6, (1, 1))]


def trained_on_noise(block: nn.Module, site: Site, steps: int = 12, rate: float = 0.3) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    optimiser = torch.optim.SGD(block.parameters(), lr=rate)
    for _ in range(steps):
        x = torch.randn(8, *site.shape, generator=generator)
        out = block(x)
        loss = (out - 2 * torch.randn(out.shape, generator=generator)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return block


def attained(block: nn.Module, site: Site) -> float:
    """The largest singular value of the Jacobian at random points: at or below the Lipschitz constant."""
    generator = torch.Generator().manual_seed(1)
    norms = []
    for scale in (0.1, 1.0, 10.0):
        x = scale * torch.randn(1, *site.shape, generator=generator, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(block, x).reshape(-1, x.numel())
        norms.append(float(torch.linalg.matrix_norm(jacobian, ord=2)))
    return max(norms)


def stated(block: nn.Module, site: Site) -> float:
    if isinstance(block, HasLipschitzBound):
        return block.lipschitz_bound(site.shape).upper
    return float(block.stated_bound(site.shape).upper)  # type: ignore[operator]


@pytest.mark.parametrize("site", SITES, ids=["image", "vector"])
@pytest.mark.parametrize("name", CONSTRAINED)
def test_a_block_stays_below_its_stated_bound_and_its_budget(name: str, site: Site) -> None:
    torch.manual_seed(0)
    block = materialise(trained_on_noise(make_block(name, site), site)).double()
    bound = stated(block, site)
    assert attained(block, site) <= bound * (1 + 1e-9)
    assert bound <= block.budget + 1e-9


@pytest.mark.parametrize("name", CONSTRAINED)
def test_the_stated_bound_is_that_of_the_current_weights(name: str) -> None:
    """The bound of a block whose weights were enlarged must be larger: it is computed, not assumed."""
    torch.manual_seed(0)
    site = Site(4, (5, 4))
    block = materialise(trained_on_noise(make_block(name, site), site)).double()
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.ndim == 4:
                parameter *= 3
    assert attained(block, site) <= stated(block, site) * (1 + 1e-9)
    assert stated(block, site) > block.budget


def test_unit_rows_keep_every_kernel_below_norm_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for kernel in (1, 3):
        weight = torch.randn(5, 5, kernel, kernel, generator=generator, dtype=torch.float64)
        rows = UnitRows(5).double()
        with torch.no_grad():
            rows.log_q.copy_(torch.randn(5, generator=generator, dtype=torch.float64))
        dense = Geometry((5, 6, 7), padding=kernel // 2).linear_map(rows(weight)).dense()
        assert 0.3 < float(torch.linalg.matrix_norm(dense, ord=2)) <= 1


def test_the_joint_training_bound_is_at_or_above_the_certified_one() -> None:
    torch.manual_seed(0)
    site = Site(4, (5, 4))
    block = trained_on_noise(JointBlock(site), site)
    assert isinstance(block, JointBlock)
    certified = block._unscaled_bound(site.shape)
    assert certified.lower * (1 - 1e-6) <= block.training_bound().item()
    assert certified.upper <= block.training_bound().item() * 1.01


def test_a_joint_block_is_initially_a_convex_potential_block() -> None:
    torch.manual_seed(0)
    assert JointBlock(Site(4, (5, 4))).training_bound().item() == pytest.approx(1.0, abs=1e-6)


def test_the_invertible_block_can_be_inverted_and_contracts_no_more_than_stated() -> None:
    torch.manual_seed(0)
    site = Site(4, (5, 4), scale=0.7)
    block = materialise(trained_on_noise(InvertibleBlock(site), site)).double()
    assert isinstance(block, InvertibleBlock)
    generator = torch.Generator().manual_seed(3)
    x, other = (torch.randn(6, *site.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    y = block(x)
    assert torch.allclose(block.inverse(y, tolerance=1e-12), x, atol=1e-10)
    ratio = (y - block(other)).flatten(1).norm(dim=1) / (x - other).flatten(1).norm(dim=1)
    assert ratio.min() >= block.lower_bound(site.shape) > 0.29
    with pytest.raises(ModelError, match="did not reach the tolerance"):
        block.inverse(y, tolerance=1e-12, most_steps=2)
    with pytest.raises(ModelError, match=r"scale in \(0, 1\)"):
        InvertibleBlock(Site(4, (5, 4), scale=1.5))


@pytest.mark.parametrize("step", [0.5, 1.0, 8.0])
def test_backward_euler_solves_its_equation_at_any_step(step: float) -> None:
    torch.manual_seed(0)
    site = Site(4, (5, 4), scale=step)
    block = materialise(trained_on_noise(BackwardEulerBlock(site), site, steps=4, rate=0.02)).double()
    assert isinstance(block, BackwardEulerBlock)
    x = 3 * torch.randn(5, *site.shape, dtype=torch.float64)
    assert block.residual(x, block(x)).max() < 1e-10
    assert attained(block, site) <= 1 + 1e-9
    assert block.lipschitz_bound(site.shape).upper == 1.0


def test_the_implicit_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    block = materialise(BackwardEulerBlock(Site(2, (3, 3), scale=2.0))).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = (0.9 * block.inner.weight.detach()).requires_grad_()
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    solve = lambda x, weight, bias: _BackwardEuler.apply(x, weight, bias, 2.0, 1)  # noqa: E731
    assert torch.autograd.gradcheck(solve, (x, weight, bias), eps=1e-6, atol=1e-5)
    assert torch.autograd.gradcheck(block, (x,), eps=1e-6, atol=1e-5)


def test_the_highway_block_is_bounded_on_a_ball_only() -> None:
    torch.manual_seed(0)
    site = Site(3, (4, 4))
    block = trained_on_noise(HighwayBlock(site), site).double().eval()
    assert isinstance(block, HighwayBlock)
    assert not isinstance(block, HasLipschitzBound)
    generator = torch.Generator().manual_seed(4)
    for radius in (1.0, 10.0):
        bound = block.bound_on_ball(site.shape, radius).upper
        for _ in range(5):
            x = torch.randn(1, *site.shape, generator=generator, dtype=torch.float64)
            x = radius * x / x.norm()
            jacobian = torch.autograd.functional.jacobian(block, x).reshape(-1, x.numel())
            assert float(torch.linalg.matrix_norm(jacobian, ord=2)) <= bound
    assert block.bound_on_ball(site.shape, 10.0).upper > 2 * block.bound_on_ball(site.shape, 1.0).upper
    with pytest.raises(ModelError, match="radius must be positive"):
        block.bound_on_ball(site.shape, 0.0)


def test_learnt_shares_keep_the_exact_budget() -> None:
    torch.manual_seed(0)
    for name in ("scaled", "convex"):
        site = Site(4, (5, 4))
        block = trained_on_noise(make_block(name, site), site)
        shares = block.shares.detach()
        assert float(shares.abs().sum()) == pytest.approx(1.0, abs=1e-6)


def test_maps_of_other_layers_are_refused() -> None:
    with pytest.raises(ModelError, match=r"only nn\.Linear and nn\.Conv2d"):
        map_of(nn.ReLU(), (2,))


def sites(name: str) -> st.SearchStrategy[Site]:
    sides = st.integers(1, 4)
    return st.builds(
        Site,
        channels=st.sampled_from([2, 4]),
        size=st.tuples(sides, sides),
        kernel=st.just(SIDE) if name == "orthogonal-convolution" else st.sampled_from([1, 3]),
        activation=st.sampled_from(["relu", "maxmin"] if name in MAXMIN else ["relu"]),
        scale=st.floats(0.1, 0.9),
    )


def largest_ratio(block: nn.Module, site: Site, generator: torch.Generator) -> float:
    """|f(x) - f(x')| / |x - x'| over pairs far apart and close together."""
    x = torch.randn(32, *site.shape, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-4, 1, 32, dtype=torch.float64).reshape(-1, 1, 1, 1)
    other = x + scales * torch.randn(x.shape, generator=generator, dtype=torch.float64)

    def lengths(values: Tensor) -> Tensor:
        return values.flatten(1).norm(dim=1)

    with torch.no_grad():
        return float((lengths(block(x) - block(other)) / lengths(x - other)).max())


@pytest.mark.parametrize("name", CONSTRAINED)
@settings(max_examples=3, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data(), seed=st.integers(0, 2**16), steps=st.integers(0, 10), rate=st.floats(0.01, 0.5))
def test_the_true_constant_the_stated_bound_and_the_budget_are_in_this_order(
    name: str, data: st.DataObject, seed: int, steps: int, rate: float
) -> None:
    site = data.draw(sites(name))
    torch.manual_seed(seed)
    block = materialise(trained_on_noise(make_block(name, site), site, steps=steps, rate=rate)).double()
    said = stated(block, site)
    truth = max(attained(block, site), largest_ratio(block, site, torch.Generator().manual_seed(seed)))
    assert truth <= said * (1 + 1e-9)
    assert said <= block.budget + 1e-9  # type: ignore[operator]
    report = lipschitz(block, site.shape, effort=0.2, lower_steps=4)
    assert truth <= report.upper * (1 + 1e-9)
    assert report.lower <= said * (1 + 1e-9)
    assert report.upper <= said * (1 + 1e-2)
