"""Local radii are never wrong: exact minima, sampled values, attacks, rounding, mutations."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import LocalCertificate, NetworkCertificate, best_radii
from robustres.certify.local import relaxations
from robustres.certify.local.backward import Rows, pulled_back
from robustres.certify.local.certificate import Certificate, proved_radius
from robustres.certify.local.intermediate import bounded
from robustres.certify.local.local_radii import local_program, local_radii
from robustres.certify.local.margins import margin_rows
from robustres.certify.local.program import Program
from robustres.certify.local.sets import Region
from robustres.certify.maps.activation import Activation
from robustres.certify.maps.piecewise_linear import Abs, Clamp, Hardsigmoid, LeakyRelu, Relu, Softshrink
from robustres.certify.maps.smooth import (
    Atan,
    Cos,
    Elu,
    Erf,
    Gelu,
    Hardswish,
    LogSigmoid,
    Mish,
    Sigmoid,
    Silu,
    Sin,
    Softplus,
    Tanh,
)
from robustres.threat import Norm
from tests.certify.local.exact import SmallNet, smallest_margin

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


def convolutional(seed: int) -> nn.Module:
    """Convolutions, batch normalisation, a residual block, pooling: with random weights and statistics."""
    torch.manual_seed(seed)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = torch.relu(x + self.inner(x))
            return answer

    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), Block(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()  # type: ignore[union-attr, operator]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    return net.double().eval()


def points_in(region: Region, count: int, seed: int) -> Tensor:
    """Random points of a region of one sample, many of them on its boundary."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *region.centre.shape[1:])
    d = torch.randn(shape, generator=generator, dtype=torch.float64)
    order = {"linf": math.inf, "l2": 2.0, "l1": 1.0}[region.norm]
    if region.norm == "linf":
        d = d.sign()
    length = torch.linalg.vector_norm(d.flatten(1), ord=order, dim=1).reshape(-1, *[1] * (d.ndim - 1))
    points = region.centre + d / length * float(region.eps[0]) * (1 - 1e-12)
    return torch.minimum(torch.maximum(points, region.lower), region.upper)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_values_of_every_step_lie_inside_its_bounds(norm: Norm, seed: int) -> None:
    made = local_program(convolutional(seed), (2, 8, 8))
    torch.manual_seed(seed)
    region = Region.ball(torch.rand(1, 2, 8, 8, dtype=torch.float64), {"linf": 0.03, "l2": 0.2, "l1": 0.6}[norm], norm)
    bounds = bounded(made, region)
    loose = sum(int(lines.loose.sum()) for lines in bounds.lines.values())
    assert loose > 5
    for place, values in enumerate(made.values(points_in(region, 500, seed))):
        assert bool((values >= bounds.lower[place]).all())
        assert bool((values <= bounds.upper[place]).all())


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_bound_is_never_above_the_margin_of_a_point(norm: Norm) -> None:
    made = local_program(convolutional(3), (2, 8, 8))
    torch.manual_seed(3)
    image = torch.rand(1, 2, 8, 8, dtype=torch.float64)
    region = Region.ball(image, {"linf": 0.05, "l2": 0.3, "l1": 1.0}[norm], norm)
    bounds = bounded(made, region)
    label = made.values(image)[-1].argmax(dim=1)
    weights, owner = margin_rows(label, 3, torch.float64)
    least = pulled_back(made, Rows(len(made.steps) - 1, weights, owner), bounds.lines, bounds.sizes()).minimum(region)
    reached = (made.values(points_in(region, 2000, 3))[-1] @ weights.T).amin(dim=0)
    assert bool((reached >= least).all())
    assert bool((least > reached - 20).all())


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_proved_where_the_exact_minimum_is_below_zero(seed: int) -> None:
    net = SmallNet(seed)
    generator = torch.Generator().manual_seed(100 + seed)
    x = torch.rand(1, 1, 1, 4, generator=generator, dtype=torch.float64)
    eps = 0.1
    label = int(net(x).argmax())
    lower, upper = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    exact = smallest_margin(net, lower, upper, label)
    with torch.no_grad():  # now the smallest margin is -1e-4, and the order of the margins at the image is unchanged
        net.last.bias[label] -= exact + 1e-4
    made = local_program(net, (1, 1, 4))
    claimed = proved_radius(made, Certificate(x[0], label, "linf", eps))
    assert claimed < eps
    with torch.no_grad():
        net.last.bias[label] += 2.0  # far above zero, so it is proved
    assert proved_radius(local_program(net, (1, 1, 4)), Certificate(x[0], label, "linf", eps)) == pytest.approx(eps)


def test_the_bound_is_close_to_the_exact_minimum_on_small_balls() -> None:
    net = SmallNet(5)
    x = torch.full((1, 1, 1, 4), 0.5, dtype=torch.float64)
    label = int(net(x).argmax())
    region = Region.ball(x, 0.01, "linf")
    made = local_program(net, (1, 1, 4))
    bounds = bounded(made, region)
    weights, owner = margin_rows(torch.tensor([label]), 3, torch.float64)
    form = pulled_back(made, Rows(len(made.steps) - 1, weights, owner), bounds.lines, bounds.sizes())
    exact = smallest_margin(net, x - 0.01, x + 0.01, label)
    assert exact - 0.02 < float(form.minimum(region).min()) <= exact + 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_no_attack_succeeds_within_a_radius(norm: Norm) -> None:
    model = convolutional(7)
    made = local_program(model, (2, 8, 8))
    torch.manual_seed(7)
    x = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    for image, found in zip(x, local_radii(made, x, norm=norm, seconds=1.0), strict=True):
        assert found.radius > 0
        assert found.certificate is not None
        assert found.radius <= found.certificate.eps
        points = points_in(Region.ball(image[None], found.radius, norm), 2000, 7)
        assert bool((model(points).argmax(dim=1) == found.prediction).all())


def test_the_minimum_over_a_ball_and_a_box_is_a_bound_and_nearly_attained() -> None:
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, 1, 1, 5, generator=generator, dtype=torch.float64)
    centre = torch.tensor([[[[0.0, 0.1, 0.5, 0.95, 1.0]]]], dtype=torch.float64)
    owner = torch.zeros(1, dtype=torch.long)
    for norm, eps in (("linf", 0.2), ("l2", 0.4), ("l1", 0.5)):
        region = Region.ball(centre, eps, norm)  # type: ignore[arg-type]
        found = float(region.descent(row, owner))
        assert found <= float(region.descent(row, owner, close=False)) + 1e-12
        # Frank-Wolfe is not needed in five dimensions: random points and the best of many scaled ones.
        points = points_in(region, 200_000, 1)
        reached = float(((centre - points) * row).flatten(1).sum(dim=1).max())
        assert reached <= found * (1 + 1e-12)
        assert reached > 0.8 * found


def linear(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()


def stable(seed: int) -> nn.Sequential:
    """A ReLU that is always active, between two layers."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        net[1].bias.add_(10.0)  # type: ignore[union-attr, operator]
    return net


def exact_minimum(net: nn.Sequential, region: Region, weights: Tensor) -> list[Fraction]:
    """The smallest value of each row on the box, in rational arithmetic; every ReLU is active."""
    rows = [[Fraction(value) for value in row] for row in weights.tolist()]
    constants = [Fraction(0)] * len(rows)
    for layer in reversed([layer for layer in net if isinstance(layer, nn.Linear)]):
        matrix = [[Fraction(value) for value in row] for row in layer.weight.tolist()]
        bias = [Fraction(value) for value in layer.bias.tolist()]
        constants = [
            c + sum(a * b for a, b in zip(row, bias, strict=True)) for c, row in zip(constants, rows, strict=False)
        ]
        rows = [
            [sum(a * line[k] for a, line in zip(row, matrix, strict=True)) for k in range(len(matrix[0]))]
            for row in rows
        ]
    low, high = ([Fraction(value) for value in side.flatten().tolist()] for side in (region.lower, region.upper))
    return [
        constant + sum(a * (low[k] if a > 0 else high[k]) for k, a in enumerate(row))
        for constant, row in zip(constants, rows, strict=True)
    ]


def _excesses(net: nn.Sequential, *, charged: bool) -> list[Fraction]:
    """The excess of each bound over the exact minimum, on many boxes."""
    made = local_program(net, (1, 2, 3))
    weights, owner = margin_rows(torch.tensor([0]), 3, torch.float64)
    excesses: list[Fraction] = []
    for centre in torch.rand(30, 1, 1, 2, 3, dtype=torch.float64):
        region = Region.box(centre - 0.01, centre + 0.01)
        bounds = bounded(made, region)
        form = pulled_back(made, Rows(len(made.steps) - 1, weights, owner), bounds.lines, bounds.sizes())
        found = form.minimum(region)
        if not charged:
            centre_value = (form.weights * region.centre).flatten(1).sum(dim=1)
            found = form.constant + centre_value - region.descent(form.weights, owner)
        exact = exact_minimum(net, region, weights)
        excesses += [Fraction(value) - truth for value, truth in zip(found.tolist(), exact, strict=True)]
    return excesses


def test_rounding_is_accounted_for_compared_with_rational_arithmetic() -> None:
    for net in (linear(0), stable(0)):
        excesses = _excesses(net, charged=True)
        assert max(excesses) <= 0
        assert min(excesses) > Fraction(-1, 10**9)
    # Without the rounding bound, about half of the bounds would exceed the truth, so the test is sensitive.
    assert max(_excesses(linear(0), charged=False)) > 0


def test_a_program_in_float32_proves_nothing() -> None:
    net = SmallNet(0)
    made = local_program(net, (1, 1, 4))
    x = torch.rand(1, 1, 4, dtype=torch.float64)
    label = int(net(x[None]).argmax())
    assert proved_radius(made.to(torch.float32), Certificate(x, label, "linf", 1e-3)) == 0
    assert proved_radius(made, Certificate(x, 1 - min(label, 1), "linf", 1e-3)) == 0
    assert proved_radius(made, Certificate(x, label, "linf", math.inf)) == 0


def comparing() -> dict[str, nn.Module]:
    class By(nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor], size: int) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.first, self.function = nn.Conv2d(1, 4, 3, padding=1), function
            self.last = nn.Linear(size, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.last(self.function(self.first(x)).flatten(1))
            return answer

    pool = torch.nn.functional.max_pool2d
    return {
        "pool": By(lambda a: pool(a, 2), 16),
        "overlapping pool": By(lambda a: pool(a, 3, 2, 1), 16),
        "maximum": By(lambda a: torch.maximum(a[:, :2], a[:, 2:]), 32),
        "minimum": By(lambda a: torch.minimum(a[:, :2], a[:, 2:]), 32),
        "largest": By(lambda a: a.amax(dim=(2, 3)), 4),
        "smallest": By(lambda a: a.amin(dim=1), 16),
        "sort": By(lambda a: a.sort(dim=1).values, 64),
        "falling sort": By(lambda a: a.sort(dim=1, descending=True).values, 64),
        "two largest": By(lambda a: a.topk(2, dim=1).values, 32),
        "maxmin": By(
            lambda a: torch.cat([torch.maximum(a[:, :2], a[:, 2:]), torch.minimum(a[:, :2], a[:, 2:])], dim=1), 64
        ),
        "gelu": By(torch.nn.functional.gelu, 64),
        "softplus": By(torch.nn.functional.softplus, 64),
    }


@pytest.mark.parametrize("name", comparing())
def test_sorts_maxima_and_smooth_activations_are_bounded(name: str) -> None:
    model = comparing()[name].double().eval()
    made = local_program(model, (1, 4, 4))
    torch.manual_seed(1)
    region = Region.ball(torch.rand(1, 1, 4, 4, dtype=torch.float64), 0.1, "linf")
    bounds = bounded(made, region)
    for place, values in enumerate(made.values(points_in(region, 500, 0))):
        assert bool((values >= bounds.lower[place]).all())
        assert bool((values <= bounds.upper[place]).all())
    weights = torch.eye(3, dtype=torch.float64)
    rows = Rows(len(made.steps) - 1, weights, torch.zeros(3, dtype=torch.long))
    least = pulled_back(made, rows, bounds.lines, bounds.sizes()).minimum(region)
    reached = model(points_in(region, 2000, 0))
    assert bool((reached >= least).all())
    assert bool((least > reached.amin(0) - 8 * (reached.amax(0) - reached.amin(0))).all())
    assert local_radii(made, region.centre, norm="l2", seconds=1.0)[0].radius > 0


class Fold(nn.Module):
    """Logits (0.2, relu(x - 0.5)): the margin of class 0 on |x - 0.5| <= 0.2 is 0, and the chord reaches it."""

    def forward(self, x: Tensor) -> Tensor:
        value = torch.relu(x.flatten(1) - 0.5)
        return torch.cat([value * 0.0 + 0.2 - 1e-9, value], dim=1)


def _proved_on_the_fold() -> float:
    image = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    return proved_radius(local_program(Fold(), (1, 1, 1)), Certificate(image, 0, "linf", 0.2))


def test_the_fold_is_proved_just_short_of_its_radius() -> None:
    assert 0.2 - 1e-6 < _proved_on_the_fold() < 0.2


def _flatter_chord(found: relaxations.Lines) -> relaxations.Lines:
    return replace(found, upper_offset=found.upper_offset * 0.9, upper_slope=found.upper_slope * 0.9)


def _lower_roof(found: relaxations.Lines) -> relaxations.Lines:
    return replace(found, upper_offset=found.upper_offset * 0.9)


def _sides_swapped(found: relaxations.Lines) -> relaxations.Lines:
    return replace(
        found,
        upper_slope=found.lower_slope,
        upper_offset=found.lower_offset,
        lower_slope=found.upper_slope,
        lower_offset=found.upper_offset,
    )


@pytest.mark.parametrize("wrong", [_flatter_chord, _lower_roof, _sides_swapped])
def test_a_wrong_line_would_prove_too_much_on_the_fold(
    wrong: Callable[[relaxations.Lines], relaxations.Lines], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = relaxations.lines
    monkeypatch.setattr(relaxations, "lines", lambda *args: wrong(honest(*args)))
    assert _proved_on_the_fold() >= 0.2 - 1e-12


KINDS: tuple[Activation, ...] = (
    *(Relu(), LeakyRelu(0.1), LeakyRelu(-0.5), LeakyRelu(2.0), Abs(), Clamp(-1.0, 1.5), Clamp(0.5, math.inf)),
    *(Softshrink(0.5), Hardsigmoid(), Hardswish(), Sigmoid(), Tanh(), Erf(), Atan(), LogSigmoid(), Silu(), Mish()),
    *(Gelu("none"), Gelu("tanh"), Softplus(1.0, 20.0), Softplus(0.5, 25.0), Elu(1.0), Elu(0.5, 2.0, 3.0), Sin(), Cos()),
    LeakyRelu(torch.linspace(-1, 2, 400, dtype=torch.float64)),
)


@pytest.mark.parametrize("function", KINDS, ids=repr)
def test_lines_are_valid_on_dense_samples_and_no_tighter_ones_would_be(function: Activation) -> None:
    generator = torch.Generator().manual_seed(0)
    ends = 4 * torch.randn(2, 1, 400, generator=generator, dtype=torch.float64)
    lower, upper = ends.amin(0), ends.amax(0)
    found = relaxations.relaxed(function, lower, upper)
    assert_holds(found, function, lower, upper)
    width = (upper - lower) * function.constant
    for part, shift in (("upper_offset", -0.1), ("lower_offset", 0.1)):
        wrong = replace(found, **{part: getattr(found, part) + shift * width})
        with pytest.raises(AssertionError):
            assert_holds(wrong, function, lower, upper)
    assert float(((found.upper_slope - found.lower_slope) * (lower + upper) / 2).abs().max()) < 100
    middle = (lower + upper) / 2
    gap = (found.upper_slope - found.lower_slope) * middle + found.upper_offset - found.lower_offset
    assert bool((gap <= 1.01 * width * (function.slopes[1] - function.slopes[0]) / function.constant + 1e-9).all())


def assert_holds(found: relaxations.Lines, function: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> None:
    """Both lines, every free slope and the range, at 201 points of every interval."""
    for share in torch.linspace(0, 1, 201, dtype=torch.float64).tolist():
        z = torch.minimum(lower + share * (upper - lower), upper)
        value = function(z)
        for slope in (found.lower_slope, found.flattest, found.steepest):
            assert bool((slope * z + found.lower_offset <= value + 1e-12).all())
        assert bool((found.upper_slope * z + found.upper_offset >= value - 1e-12).all())
        assert bool(((found.low <= value) & (value <= found.high)).all())


def test_constants_are_read_from_the_graph() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
            self.register_buffer("shift", torch.arange(4.0))

        def forward(self, x: Tensor) -> Tensor:
            a = self.layer(x.flatten(1)) - self.shift
            b = 3.0 - 2.0 * torch.relu(a)
            return self.last(torch.relu(torch.nn.functional.pad(b[:, :3], (1, 0), value=0.25) + 0.5 * a))  # type: ignore[no-any-return]

    model = Odd()
    made = local_program(model, (1, 2, 2))
    assert isinstance(made, Program)
    x = torch.rand(5, 1, 2, 2)
    assert torch.allclose(made.values(x.double())[-1], model(x).double(), atol=1e-5)


def test_local_radii_join_the_best_of_all_certificates() -> None:
    model = convolutional(7)
    torch.manual_seed(7)
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    local = LocalCertificate("l2", seconds=1.0)(model, x)
    network = NetworkCertificate("l2", "lipschitz")(model, x)
    (best,) = best_radii([network, local])
    assert torch.equal(best.radius, torch.maximum(local.radius, network.radius))
    assert any(source.startswith("local") for source in best.source)
