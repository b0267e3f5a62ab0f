"""Radii: closed forms, both norms, rounding, and inputs on which certificates often fail."""

import copy
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.certify import certified_accuracy_curve, certify, lipschitz
from robustres.certify.radii import radius as radius_module
from robustres.certify.radii.forward_rounding import Deviation
from robustres.errors import InputError, PrecisionError


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    """A linear classifier of images (1, 1, d)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return nn.Sequential(nn.Flatten(), layer)


@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 5), dimension=st.integers(1, 6))
def test_the_radius_of_a_linear_classifier_is_its_distance_to_the_nearest_boundary(
    seed: int, classes: int, dimension: int
) -> None:
    torch.manual_seed(seed)
    weight, bias = torch.randn(classes, dimension), torch.randn(classes)
    x = torch.rand(6, 1, 1, dimension)
    logits = x.flatten(1).double() @ weight.double().T + bias.double()
    label = logits.argmax(1)
    model = linear(weight, bias)
    report = lipschitz(model, (1, 1, dimension))
    for norm, order in (("l2", 2.0), ("linf", 1.0)):
        got = certify(model, x, norm=norm, report=report)
        for row in range(len(x)):
            others = [j for j in range(classes) if j != label[row]]
            distances = [
                float(
                    (logits[row, label[row]] - logits[row, j])
                    / (weight[label[row]].double() - weight[j].double()).norm(p=order)
                )
                for j in others
            ]
            assert got.radius[row] <= min(distances)
            assert got.radius[row] == pytest.approx(min(distances), rel=1e-6, abs=1e-9)
        assert torch.equal(got.prediction, label)


def test_the_pairwise_head_is_never_worse_than_the_whole_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.rand(16, 1, 2, 3)
    report = lipschitz(model, (1, 2, 3))
    paired = certify(model, x, report=report)
    whole = paired.margin / (math.sqrt(2) * report.upper)
    assert bool((paired.radius >= whole * (1 - 1e-6)).all())
    assert bool((paired.radius > whole * 1.01).any())


def test_unequal_deviations_of_the_normalisation_become_part_of_the_first_layer() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1, bias=False)
            self.register_buffer("std", torch.tensor([0.1, 1.0]).reshape(2, 1, 1))
            with torch.no_grad():
                self.conv.weight.copy_(torch.diag(torch.tensor([0.05, 1.0])).reshape(2, 2, 1, 1))

        def forward(self, x: Tensor) -> Any:
            return self.conv((x - 0.5) / self.std).flatten(1)

    report = lipschitz(Normalised(), (2, 3, 3))
    assert report.upper == pytest.approx(1.0, rel=1e-6)  # 1 / min(std) would give 10; the true constant is 1


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_ties_nan_and_infinite_logits_have_radius_zero(value: float) -> None:
    weight = torch.eye(2)
    x = torch.full((1, 1, 1, 2), value)
    got = certify(linear(weight), x, report=lipschitz(linear(weight), (1, 1, 2)))
    assert got.radius.tolist() == [0.0]


def test_indistinguishable_classes_have_radius_zero() -> None:
    got = certify(linear(torch.ones(3, 4)), torch.rand(2, 1, 1, 4))
    assert got.radius.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_weights_give_the_radius_of_ordinary_ones(scale: float) -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[[[0.75, 0.25]]]])
    radius = certify(linear(scale * weight), x).radius.item()
    assert radius <= 0.5 / math.sqrt(2)
    assert radius == pytest.approx(0.5 / math.sqrt(2), rel=1e-6)


def test_a_branch_that_is_never_active_only_loosens_the_bound() -> None:
    torch.manual_seed(0)

    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            nn.init.zeros_(self.outer.weight)

        def forward(self, x: Tensor) -> Any:
            x = x.flatten(1)
            return self.head(x + self.outer(torch.relu(self.inner(x))))

    report = lipschitz(Dead(), (1, 2, 2))
    assert report.blocks[0].upper == pytest.approx(1)
    assert bool((certify(Dead(), torch.rand(4, 1, 2, 2)).radius >= 0).all())


def test_one_pixel_images_and_grouped_convolutions_are_certified() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    x = torch.rand(5, 4, 1, 1)
    report = lipschitz(model, (4, 1, 1))
    centre = model[0].weight.detach().double()[:, 0, 1, 1].reshape(4, 2)
    assert report.blocks[0].upper == pytest.approx(float(centre.norm(dim=1).max()), rel=1e-9)
    assert bool((certify(model, x, report=report).radius > 0).all())


def test_a_report_of_other_weights_or_another_shape_is_refused() -> None:
    model = linear(torch.eye(2))
    report = lipschitz(model, (1, 1, 2))
    with pytest.raises(InputError, match="inputs of shape"):
        certify(model, torch.rand(1, 1, 2, 1), report=report)
    with torch.no_grad():
        model[1].weight.mul_(2)
    with pytest.raises(InputError, match="other weights"):
        certify(model, torch.rand(1, 1, 1, 2), report=report)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_radii_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    x = torch.rand(5, 1, 4, 4)
    report = lipschitz(model, (1, 4, 4))
    got = certify(model, x, report=report, batch_size=batch_size)
    torch.testing.assert_close(got.radius, certify(model, x, report=report).radius, rtol=1e-12, atol=0)


def mixed_network() -> nn.Module:
    """Convolution, normalisation, a skip, pooling and a dense layer."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.inner, self.outer = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Linear(8 * 16, 5)
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.running_mean.normal_()

        def forward(self, x: Tensor) -> Any:
            x = torch.relu(self.norm(self.stem((x - 0.4) / 0.3)))
            x = x + self.outer(torch.relu(self.inner(x)))
            return self.head(nn.functional.max_pool2d(x, 2).flatten(1))

    torch.manual_seed(0)
    return Mixed().eval()


def test_the_deviation_bound_covers_float32_rounding_and_is_subtracted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixed_network()
    x = torch.rand(32, 3, 8, 8)
    report = lipschitz(model, (3, 8, 8), effort=0.3)
    bounds: list[Tensor] = []
    original = Deviation.at_output

    def recorded(self: Deviation) -> Tensor:
        bounds.append(original(self))
        return bounds[-1]

    monkeypatch.setattr(radius_module.Deviation, "at_output", recorded)
    double = certify(model, x, report=report)
    single = certify(model, x, report=report, dtype=torch.float32)
    with torch.no_grad():
        low = model(x).double()
        exact = report.analysis.captured.module(x.double()) if report.analysis else low
    observed = (low - exact).norm(dim=1)
    assert float(observed.max()) > 0
    assert bool((observed <= bounds[1]).all())
    assert float((bounds[0] / bounds[1]).max()) < 1e-6
    assert bool((single.radius <= double.radius).all())
    assert bool((single.radius < double.radius).any())


def test_float32_refuses_operations_without_a_deviation_bound() -> None:
    class Squash(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.exp(-x * x)

    written = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), Squash(), nn.Linear(4, 2))
    with pytest.raises(PrecisionError, match="Written"):
        certify(written, torch.rand(1, 1, 2, 2), dtype=torch.float32)
    computed = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)))
    with pytest.raises(PrecisionError, match="parametrisation"):
        certify(computed, torch.rand(1, 1, 2, 2), dtype=torch.float32)
    with pytest.raises(PrecisionError, match="float32 images"):
        certify(linear(torch.eye(2)), torch.rand(1, 1, 1, 2).double(), dtype=torch.float32)
    with pytest.raises(InputError, match="float64 or"):
        certify(linear(torch.eye(2)), torch.rand(1, 1, 1, 2), dtype=torch.bfloat16)


def test_autocast_is_refused() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(PrecisionError, match="autocast"):
        certify(linear(torch.eye(2)), torch.rand(1, 1, 1, 2))


def test_the_certified_accuracy_counts_only_correct_samples() -> None:
    radius, correct = torch.tensor([0.3, 0.2, 0.9]), torch.tensor([True, True, False])
    assert certified_accuracy_curve(radius, correct, [0.0, 0.25, 0.5]) == pytest.approx([2 / 3, 1 / 3, 0.0])


@pytest.mark.parametrize(("joint", "factor"), [(False, 0.5), (False, 2.0), (True, 0.0), (True, 0.3), (True, 2.5)])
def test_rescaling_a_branch_shows_the_resulting_gain(joint: bool, factor: float) -> None:
    model = mixed_network()
    report = lipschitz(model, (3, 8, 8), joint=joint, effort=0.05)
    (block,) = report.residual_blocks
    supposed = report.what_if(block.name, factor)
    textbook = 1 + block.branch * factor
    assert supposed.block_upper <= textbook + 1e-9
    if not joint:
        mixture = 1 - factor + factor * block.upper if factor <= 1 else math.inf
        assert supposed.block_upper == pytest.approx(min(textbook, mixture))
    assert supposed.radius_gain == pytest.approx(report.product / supposed.network_upper)
    with torch.no_grad():
        model.outer.weight *= factor
        model.outer.bias *= factor  # type: ignore[operator]
    anew = lipschitz(model, (3, 8, 8), joint=joint, effort=0.05)
    assert supposed.network_upper >= anew.lower
    if joint:
        assert supposed.network_upper <= anew.product * 1.05
        assert factor == 0 or supposed.method == "joint"
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    near = x + 0.01 * torch.randn_like(x)
    with torch.no_grad():
        ratios = (model.double()(near) - model(x)).norm(dim=1) / (near - x).flatten(1).norm(dim=1)
    assert float(ratios.max()) <= supposed.network_upper


def test_rescaling_another_piece_multiplies_its_constant_and_a_linear_branch_is_summed() -> None:
    report = lipschitz(mixed_network(), (3, 8, 8), joint=False)
    assert report.what_if(report.blocks[0].name, 0.5).radius_gain == pytest.approx(2)
    with pytest.raises(InputError, match="the blocks are"):
        report.what_if("nowhere", 0.5)
    with pytest.raises(InputError, match="at least 0"):
        report.what_if(report.blocks[0].name, -1.0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.Tanh())  # steeper where a smaller weight puts its values
    with pytest.raises(InputError, match="call lipschitz again"):
        lipschitz(model, (1, 1, 1), domain="unit").what_if("1", 0.1)

    class Negative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=False)
            self.layer.weight.data = -torch.eye(3)

        def forward(self, x: Tensor) -> Any:
            return x + self.layer(x)

    supposed = lipschitz(nn.Sequential(Negative(), nn.ReLU()), (3,)).what_if("0", 0.25)
    assert supposed.block_upper == pytest.approx(0.75)
    tripled = nn.Linear(1, 1, bias=False)
    tripled.weight.data.fill_(3.0)
    (row,) = (report := lipschitz(tripled, (1,))).blocks
    assert Fraction(report.what_if(row.name, 0.7).block_upper) >= Fraction(0.7) * Fraction(row.upper)


def test_estimates_from_images_are_higher_and_below_the_bounds() -> None:
    model = mixed_network()
    plain = lipschitz(model, (3, 8, 8), joint=False)
    found = lipschitz(model, (3, 8, 8), joint=False, images=torch.rand(20, 3, 8, 8))
    assert plain.lower < found.lower <= found.upper == plain.upper
    for before, after in zip(plain.blocks, found.blocks, strict=True):
        assert after.lower <= after.upper
        assert after.lower >= 0.9 * before.lower
    with pytest.raises(InputError, match="images must have the shape"):
        lipschitz(model, (3, 8, 8), images=torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize("before", [nn.Identity(), nn.ReLU()])
def test_the_rounding_of_a_shift_after_the_last_piece_is_subtracted(before: nn.Module) -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return before(x) - 0.33574047249807537

    x = 0.01 + 0.02 * torch.rand(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = certify(Shifted(), x)
    away = torch.tensor([-1.0, 1.0], dtype=torch.float64) / math.sqrt(2)
    toward = torch.where(found.prediction[:, None] == 0, away, -away)
    near = x + (found.radius * (1 - 1e-15))[:, None] * toward
    inside = (near - x).norm(dim=1) <= found.radius
    assert int(inside.sum()) > 1000
    assert torch.equal(Shifted()(near).argmax(1)[inside], found.prediction[inside])


def test_squares_that_overflow_within_the_ball_are_not_certified() -> None:
    class Long(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            length = 1e-160 * (1e160 * x.flatten(1)).norm(dim=1, keepdim=True)
            return torch.cat([1 - length, 0 * length - 5], 1)

    x = torch.full((1, 1, 1, 2), 1e-9, dtype=torch.float64)
    found = certify(Long(), x)
    assert Long()(x).isfinite().all()
    assert Long()(x + 1e-3).argmax(1).item() == 1 != found.prediction.item()
    assert found.radius.item() < 1e-3


def test_squares_that_underflow_are_charged() -> None:
    class Short(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            length = 1e160 * (1e-160 * x.flatten(1)).norm(dim=1, keepdim=True)
            return torch.cat([length, 0 * length + 1e-3], 1)

    x = torch.tensor([1e-2, 1e8], dtype=torch.float64).reshape(2, 1, 1, 1).expand(2, 1, 1, 2)
    assert Short()(x)[0, 0] == 0  # in exact arithmetic 1e-2, above the other number
    radius = certify(Short(), x).radius
    assert radius[0] == 0 < radius[1]


def charged(model: nn.Module, x: Tensor) -> Tensor:
    """(N,) the bound on the rounding of the logits in float32."""
    analysis = lipschitz(model, tuple(x.shape[1:]), lower_steps=0, joint=False).analysis
    assert analysis is not None
    _, sizes = analysis.measured(x.double(), batch_size=len(x))
    return Deviation(analysis, sizes, torch.zeros(len(x), dtype=torch.float64), torch.float32).at_output()


def test_the_rounding_of_a_large_added_constant_is_charged() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[1].bias.fill_(1e6)  # type: ignore[operator, union-attr]
    x = torch.rand(8, 1, 2, 2)
    bound = charged(model, x)
    with torch.no_grad():
        observed = (model(x).double() - copy.deepcopy(model).double()(x.double())).norm(dim=1)
    assert float(observed.max()) > 1e-3
    assert bool((observed <= bound).all())


def test_the_rounding_of_both_branches_of_a_sum_is_charged() -> None:
    class Branches(nn.Module):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x: Tensor) -> Tensor:
            parts = [torch.relu(layer(x.flatten(1))) for layer in self.layers]
            return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    torch.manual_seed(0)
    first, second = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    x = torch.rand(8, 1, 2, 2)
    alone = charged(Branches(first), x) + charged(Branches(second), x)
    assert bool((charged(Branches(first, second), x) >= alone * (1 - 1e-9)).all())


@pytest.mark.parametrize("width", [3, 4])
def test_constants_made_from_the_type_of_the_input_have_no_batch(width: int) -> None:
    class Made(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * (x.new_ones(width) + 1))

    model, x = Made(width, 3), torch.rand(50, width)
    found = certify(model, x)
    assert torch.equal(found.prediction, model(x).argmax(1))
    assert bool((found.radius > 0).any())
