"""Products, squares, roots, quotients, softmax and normalisation: planes and lines on dense grids, and radii."""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from robustres.certify.local import relaxations
from robustres.certify.local.certificate import Certificate, proved_radius
from robustres.certify.local.intermediate import bounded
from robustres.certify.local.local_radii import local_program, local_radii
from robustres.certify.local.planes import Planes, planes
from robustres.certify.local.relaxations import Lines, UnboundedError
from robustres.certify.local.sets import Region
from robustres.certify.local.steps import Known
from robustres.certify.maps.activation import Curve, PiecewiseLinear
from robustres.certify.maps.curves import Exp, Log, Power, Reciprocal, Square
from robustres.certify.maps.piecewise_linear import Abs, Clamp, LeakyRelu, Relu, Softshrink
from tests.certify.local.drawn import OPERATIONS, drawn, inside, onto

F = nn.functional
CURVES: tuple[Curve, ...] = (Square(), Exp(), Log(), Reciprocal(), *map(Power, (0.5, -0.5, 0.3, 1.7, -1.0, -2.5)))
WIDTHS = (1e-13, 1e-8, 1e-3, 0.3, 2.0, 30.0)


def intervals(count: int, *, positive: bool) -> tuple[Tensor, Tensor]:
    """Short and long intervals near 0 and far away, (1, count), some of a single point."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, count, generator=generator, dtype=torch.float64) * torch.logspace(-3, 1.5, count)
    width = torch.tensor(WIDTHS, dtype=torch.float64).repeat(count // len(WIDTHS) + 1)[:count]
    width = width * torch.rand(1, count, generator=generator, dtype=torch.float64)
    width[:, ::11] = 0.0
    start = start.abs() + 1e-3 if positive else start
    return start, start + width


def fits(found: Planes, x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> bool:
    """Whether the planes hold at the corners, which for a product means everywhere, in rational arithmetic."""
    parts = (found.first, found.second, found.lower_offset, found.upper_offset, found.low, found.high)
    for place in range(x[0].shape[1]):
        a, b, below, above, low, high = (Fraction(float(part[0, place])) for part in parts)
        for s in (Fraction(float(side[0, place])) for side in x):
            for t in (Fraction(float(side[0, place])) for side in y):
                if not a * s + b * t + below <= s * t <= a * s + b * t + above or not low <= s * t <= high:
                    return False
    return True


def test_planes_hold_in_rational_arithmetic_and_no_closer_ones_would() -> None:
    x, y = intervals(200, positive=False), tuple(side.flip(1) for side in intervals(200, positive=False))
    found = planes(x, y)  # type: ignore[arg-type]
    assert fits(found, x, y)  # type: ignore[arg-type]
    gap = found.upper_offset - found.lower_offset
    assert bool((gap <= 1e-13 * (1 + found.high.abs() + found.low.abs()) + (x[1] - x[0]) * (y[1] - y[0]) / 2).all())
    for part, sign in (("lower_offset", 1), ("upper_offset", -1)):
        assert not fits(replace(found, **{part: getattr(found, part) + sign * 1e-6 * gap}), x, y)  # type: ignore[arg-type]


def holds(found: Lines, function: Curve, lower: Tensor, upper: Tensor) -> bool:
    """Whether both lines and the range hold at 301 points of every interval, up to the rounding of this comparison."""
    share = torch.linspace(0, 1, 301, dtype=torch.float64)[:, None, None]
    z = torch.minimum(lower + share * (upper - lower), upper)
    value = function(z)
    size = value.abs() + found.lower_slope.abs() * z.abs() + found.upper_slope.abs() * z.abs()
    room = 8 * 2.0**-53 * size
    below = found.lower_slope * z + found.lower_offset <= value + room
    above = found.upper_slope * z + found.upper_offset >= value - room
    return bool((below & above & (found.low <= value) & (value <= found.high)).all())


PIECES: tuple[PiecewiseLinear, ...] = (
    Relu(), Abs(), LeakyRelu(0.3), LeakyRelu(1.0), LeakyRelu(2.0), LeakyRelu(-0.5), Softshrink(0.4), Clamp(-0.3, 0.8),
    Clamp(0.0, math.inf), Clamp(-math.inf, 0.0),
)  # fmt: skip


@pytest.mark.parametrize("function", PIECES, ids=str)
def test_lines_and_free_slopes_of_pieces_hold_between_all_bounds(function: PiecewiseLinear) -> None:
    """Kinks that are convex, concave (a slope above 1 on the left) or neither; every slope that is said to be free."""
    lower, upper = intervals(300, positive=False)
    found = relaxations.relaxed(function, lower, upper)
    z = lower + (upper - lower) * torch.linspace(0, 1, 41, dtype=torch.float64)[:, None]
    z = torch.cat((z, z.new_zeros(1, z.shape[1]).clamp(lower, upper)))
    value, room = function(z), 1e-15 * (1 + z.abs())
    for slope in (found.lower_slope, found.flattest, found.steepest):
        assert bool((slope * z + found.lower_offset <= value + room).all())
    assert bool((value <= found.upper_slope * z + found.upper_offset + room).all())
    assert bool((found.low <= value).all() and (value <= found.high).all())


@pytest.mark.parametrize("function", CURVES, ids=repr)
def test_lines_of_curves_hold_on_dense_samples_and_no_closer_ones_would(function: Curve) -> None:
    sides = (1, -1) if isinstance(function, Reciprocal) else (1,)
    for side in sides:
        lower, upper = intervals(300, positive=not isinstance(function, Square | Exp))
        if side < 0:
            lower, upper = -upper, -lower
        found = relaxations.relaxed(function, lower, upper)
        assert holds(found, function, lower, upper)
        middle = (lower + upper) / 2
        gap = (found.upper_slope - found.lower_slope) * middle + found.upper_offset - found.lower_offset
        wide = upper - lower > 0.1
        flat, steep = function.slopes_on(lower, upper)
        assert bool(((flat <= found.lower_slope) & (found.upper_slope <= steep))[wide].all())
        for part, sign in (("lower_offset", 1), ("upper_offset", -1)):
            moved = getattr(found, part) + sign * torch.where(wide, 1e-6 * gap, 0.0)
            assert not holds(replace(found, **{part: moved}), function, lower, upper)


@pytest.mark.parametrize(
    ("function", "lower", "upper"),
    [(Reciprocal(), -0.1, 0.2), (Reciprocal(), 0.0, 1.0), (Log(), 0.0, 1.0), (Power(-0.5), -1.0, 1.0),
     (Power(0.5), -0.1, 1.0), (Exp(), 0.0, 800.0), (Square(), 0.0, 1e200)],
)  # fmt: skip
def test_where_a_function_is_not_finite_there_are_no_lines(function: Curve, lower: float, upper: float) -> None:
    step = relaxations.Activation(0, function, (1,))
    low, high = (torch.tensor([[end]], dtype=torch.float64) for end in (lower, upper))
    with pytest.raises(UnboundedError):
        relaxations.lines(step, low, high)


class Apply(nn.Module):
    """A function of the flat image as logits."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x.flatten(1))


def test_beyond_a_pole_nothing_is_proved_and_up_to_it_almost_everything() -> None:
    # 1 / (x - 0.2) > 0 on the right of the pole, and -1 is never reached there.
    made = local_program(Apply(lambda x: torch.cat([1 / (x - 0.2), 0 * x - 1], dim=1)), (1, 1, 1))
    image = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    assert proved_radius(made, Certificate(image, 0, "linf", 0.29)) == 0.29
    assert proved_radius(made, Certificate(image, 0, "linf", 0.31)) == 0.0
    for norm in ("linf", "l2", "l1"):
        (found,) = local_radii(made, image[None], norm=norm, seconds=1.0)  # type: ignore[arg-type]
        assert 0.25 < found.radius < 0.3


def test_a_product_is_bounded_by_its_planes() -> None:
    # 0.3 - x y on |x - 0.5|, |y - 0.4| <= e: the smallest value 0.3 - (0.5 + e) (0.4 + e) is 0 at e = 0.1.
    def function(x: Tensor) -> Tensor:
        return torch.cat([0.3 - x[:, :1] * x[:, 1:], 0 * x[:, :1]], dim=1)

    made = local_program(Apply(function), (1, 1, 2))
    image = torch.tensor([[[0.5, 0.4]]], dtype=torch.float64)
    assert proved_radius(made, Certificate(image, 0, "linf", 0.1 - 1e-9)) == 0.1 - 1e-9
    assert proved_radius(made, Certificate(image, 0, "linf", 0.1 + 1e-9)) <= 0.1


def test_planes_that_are_too_close_would_prove_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = planes
    monkeypatch.setattr(relaxations, "planes", lambda *args: closer(honest(*args)))  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        test_a_product_is_bounded_by_its_planes()


def closer(found: Planes) -> Planes:
    """The upper plane lowered by a millionth of the gap."""
    return replace(found, upper_offset=found.upper_offset - 1e-6 * (found.upper_offset - found.lower_offset))


NEW = tuple(OPERATIONS)[list(OPERATIONS).index("product") : list(OPERATIONS).index("concatenation")]


@pytest.mark.parametrize("name", NEW)
def test_values_of_every_step_lie_inside_its_bounds(name: str) -> None:
    made, model = drawn(name, 3)
    generator = torch.Generator().manual_seed(3)
    centre = torch.rand(1, 1, 2, 3, generator=generator, dtype=torch.float64)
    for eps in (0.003, 0.05):
        region = Region.ball(centre, eps, "linf")
        bounds, points = bounded(made, region), inside(region, 300, generator)
        values = made.values(points)
        for place, (low, high) in enumerate(zip(bounds.lower, bounds.upper, strict=True)):
            slack = 1e-12 * (1 + values[place].abs())
            assert bool(((low - slack <= values[place]) & (values[place] <= high + slack)).all()), place
        torch.testing.assert_close(values[-1], model(points), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["layer normalisation", "group normalisation", "root mean square"])
def test_normalised_values_are_bounded_by_the_root_of_their_number_on_any_ball(name: str) -> None:
    made, _ = drawn(name, 0)
    bounds = bounded(made, Region.ball(torch.full((1, 1, 2, 3), 0.5, dtype=torch.float64), 0.5, "linf"))
    size = {"layer normalisation": 7, "group normalisation": 11, "root mean square": 8}[name]
    known = [place for place, step in enumerate(made.steps) if isinstance(step, Known) and step.low < 0]
    largest = [float(bounds.upper[place].max()) for place in known]
    assert all(value <= size**0.5 + 1e-9 for value in largest)
    assert name != "layer normalisation" or max(largest) == pytest.approx(size**0.5)


@pytest.mark.parametrize("order", [1.0, 2.0])
def test_the_length_of_a_short_vector_lies_inside_its_bounds(order: float) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, ord=order, dim=1, keepdim=True) * x.new_tensor([[1.0, 0.0]])

    made = local_program(Apply(function), (1, 2, 3))
    region = Region.ball(torch.full((1, 1, 2, 3), 0.01, dtype=torch.float64), 0.03, "linf")
    bounds = bounded(made, region)
    for place, values in enumerate(made.values(inside(region, 300, torch.Generator().manual_seed(0)))):
        assert bool(((bounds.lower[place] <= values + 1e-12) & (values - 1e-12 <= bounds.upper[place])).all())


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_no_point_within_a_radius_has_another_answer(name: str) -> None:
    for seed in range(40):
        made, model = drawn(name, seed)
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(1, 1, 2, 3, generator=generator, dtype=torch.float64)
        norm = ("linf", "l2", "l1")[seed % 3]
        (found,) = local_radii(made, x, norm=norm, seconds=0.3)  # type: ignore[arg-type]
        if found.radius > 0:
            region = Region.ball(x, found.radius, norm)  # type: ignore[arg-type]
            assert least_margin(model, region, found.prediction, generator) > 0, seed


def least_margin(model: nn.Module, region: Region, label: int, generator: torch.Generator) -> float:
    """The smallest margin found by random points of the region and by descent from the best of them."""
    least, x = float("inf"), inside(region, 1000, generator)
    for step in range(30):
        with torch.enable_grad():
            logits = model(x.requires_grad_())
            others = logits.clone()
            others[:, label] = -torch.inf
            margins = logits[:, label] - others.amax(dim=1)
            (slope,) = torch.autograd.grad(margins.sum(), x)
        least = min(least, float(margins.detach().min()))
        best = margins.argsort()[:50]
        length = slope[best].flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
        direction = slope[best].sign() if region.norm == "linf" else slope[best] / length
        x = onto(region, x.detach()[best] - 0.3 * 0.9**step * float(region.eps[0]) * direction)
    return least


def test_what_still_has_no_relaxation_is_refused_by_name() -> None:
    long = Apply(lambda x: x.sort(dim=1).values[:, :2])
    with pytest.raises(Exception, match="sorts 20 values together"):
        local_program(long, (1, 4, 5))
    masked = torch.zeros(2, 2, dtype=torch.float64)

    def attention(x: Tensor) -> Tensor:
        a = x.reshape(-1, 2, 2)
        return F.scaled_dot_product_attention(a, a, a, attn_mask=masked).flatten(1)

    with pytest.raises(Exception, match="with a mask"):
        local_program(Apply(attention), (1, 2, 2))
