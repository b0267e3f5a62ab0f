"""Every rounding error of a proof is included: that of each step, of the lines, of the region and of the intervals."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from robustres.certify.local import relaxations
from robustres.certify.local.backward import Form, Rows, Sizes, pulled_back
from robustres.certify.local.evidence import Branch, Split
from robustres.certify.local.intermediate import Bounds, bounded
from robustres.certify.local.local_radii import local_program
from robustres.certify.local.parts import forms_of_leaves, lines_of_parts
from robustres.certify.local.program import Program
from robustres.certify.local.proof import beyond
from robustres.certify.local.sets import Region
from robustres.certify.local.steps import Activation, Affine, Total
from robustres.certify.maps.activation import PiecewiseLinear
from robustres.certify.maps.piecewise_linear import Abs, Clamp, LeakyRelu, Relu
from robustres.numerics import gamma
from tests.certify.local.drawn import drawn, questions

ROW = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)


class Chain(nn.Module):
    """W2 r(W1 x + b1) + b2 + W1 x, with a ReLU that is always active."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Conv2d(1, 8, (2, 3)), nn.Linear(8, 3), nn.Conv2d(1, 3, (2, 3))
        with torch.no_grad():
            self.first.bias.add_(10.0)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.second(torch.relu(self.first(x)).flatten(1)) + self.third(x).flatten(1)
        return answer


@pytest.fixture(scope="module")
def chain() -> tuple[Program, Region, Bounds]:
    made = local_program(Chain(), (1, 2, 3))
    region = Region.ball(torch.full((1, 1, 2, 3), 0.5, dtype=torch.float64), 0.1, "linf")
    return made, region, bounded(made, region)


def charged(made: Program, bounds: Bounds, sizes: Sizes) -> float:
    rows = Rows(len(made.steps) - 1, ROW, torch.zeros(1, dtype=torch.long))
    return float(pulled_back(made, rows, bounds.lines, sizes).charge)


def test_every_step_includes_its_own_rounding(chain: tuple[Program, Region, Bounds]) -> None:
    made, _, bounds = chain
    nothing = Sizes(
        [torch.zeros_like(side) for side in bounds.lower], {at: torch.zeros_like(v) for at, v in bounds.affine.items()}
    )
    least = charged(made, bounds, nothing)
    passed: dict[int, Tensor] = {}
    rows = Rows(len(made.steps) - 1, ROW, torch.zeros(1, dtype=torch.long))
    pulled_back(made, rows, bounds.lines, passed=passed)
    ((place, row),) = passed.items()
    first = next(step for at, step in enumerate(made.steps) if isinstance(step, Activation) and at == place).source
    for at, step in enumerate(made.steps):
        if isinstance(step, Affine):
            affine = {**nothing.affine, at: torch.ones_like(bounds.affine[at])}
            mine = row if at == first else ROW
            wanted = gamma(step.roundings) * float(mine.abs().sum())
            assert charged(made, bounds, replace(nothing, affine=affine)) - least >= wanted > 0, at
        if at == first:  # each entry is rounded when a line is applied
            steps = [
                torch.ones_like(side) if number == at else nothing.steps[number]
                for number, side in enumerate(bounds.lower)
            ]
            assert charged(made, bounds, replace(nothing, steps=steps)) - least >= 0.5 * gamma(1)
    assert least > 0  # of the constants


def test_the_minimum_subtracts_the_rounding_of_the_region(chain: tuple[Program, Region, Bounds]) -> None:
    made, region, bounds = chain
    rows = Rows(len(made.steps) - 1, ROW, torch.zeros(1, dtype=torch.long))
    form = pulled_back(made, rows, bounds.lines, bounds.sizes())
    descent = region.descent(form.weights, form.owner)
    plain = form.constant + (form.weights * region.centre).flatten(1).sum(dim=1) - descent
    size = (form.weights.abs() * region.centre.abs()).flatten(1).sum(dim=1) + descent
    assert float(plain - form.minimum(region)) >= 0.99 * float(form.charge + gamma(6) * size)
    limits = torch.tensor([3.0], dtype=torch.float64)
    assert float(beyond(form, limits).charge - form.charge) >= 0.99 * gamma(1) * float(form.constant.abs() + limits)


def test_intervals_are_rounded_outwards(chain: tuple[Program, Region, Bounds]) -> None:
    made, region, _ = chain
    point = bounded(made, region.with_eps(0.0), rows=False)
    for at, step in enumerate(made.steps):
        width = point.upper[at] - point.lower[at]
        if isinstance(step, Affine):
            assert bool((width >= 2 * gamma(step.roundings) * point.affine[at]).all())
            assert bool((point.affine[at] >= point.upper[at].abs()).all())
        if isinstance(step, Total):
            sizes = sum(point.upper[source].abs() for source in step.sources)
            before = sum(point.upper[source] - point.lower[source] for source in step.sources)
            assert bool((width - before >= gamma(1) * sizes).all())  # type: ignore[union-attr]


def test_the_rounding_of_multipliers_is_included(chain: tuple[Program, Region, Bounds]) -> None:
    made, _, bounds = chain
    (place,) = made.activations
    split = Split(place, 2, 11.0)
    charge = []
    for value in (0.0, -1e3):
        leaf = Branch(0.0, multipliers={split: value})
        form: Form = forms_of_leaves(made, bounds, ROW, [(leaf, ((split, True),))], bounds.sizes())
        charge.append(float(form.charge))
    assert charge[1] - charge[0] >= gamma(3) * 1e3 * 11


def test_lines_of_parts_are_those_of_their_own_intervals() -> None:
    made, _ = drawn("tanh", 3)
    ((question, _),) = questions(made, "linf", 3)
    bounds, place = bounded(made, question.region), made.activations[0]
    step = made.steps[place]
    assert isinstance(step, Activation)
    lower, upper = bounds.lower[step.source][0], bounds.upper[step.source][0]
    point, below = float(0.3 * lower[2] + 0.7 * upper[2]), float(0.6 * lower[2] + 0.4 * upper[2])
    ways = [((Split(place, 2, point), False), (Split(place, 2, below), True)), ((Split(place, 2, point), True),), ()]
    found = lines_of_parts(made, bounds, ways)[place]
    for at, (low, high) in enumerate([(below, point), (point, float(upper[2])), (float(lower[2]), float(upper[2]))]):
        ends = (side.index_fill(0, torch.tensor(2), end) for side, end in ((lower, low), (upper, high)))
        expected = relaxations.lines(step, *(side[None] for side in ends))
        for name in ("lower_slope", "lower_offset", "upper_slope", "upper_offset"):
            assert torch.equal(getattr(found, name)[at], getattr(expected, name)[0])


@pytest.mark.parametrize("function", [Relu(), LeakyRelu(0.3), Abs(), Clamp(-0.3, 0.9), LeakyRelu(1.7)], ids=repr)
def test_lines_are_valid_in_rational_arithmetic(function: PiecewiseLinear) -> None:
    ends = torch.randn(2, 1, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lower, upper = ends.amin(0), ends.amax(0)
    found = relaxations.relaxed(function, lower, upper)
    tight = 0
    for place in range(300):
        numbers = (found.lower_slope, found.lower_offset, found.upper_slope, found.upper_offset)
        low, c, high, d = (Fraction(float(part[0, place])) for part in numbers)
        kinks = [Fraction(kink) for kink in function.kinks if lower[0, place] < kink < upper[0, place]]
        for z in [Fraction(float(lower[0, place])), *kinks, Fraction(float(upper[0, place]))]:
            value = exactly(function, z)
            assert low * z + c <= value <= high * z + d
            assert Fraction(float(found.low[0, place])) <= value <= Fraction(float(found.high[0, place]))
            tight += min(value - low * z - c, high * z + d - value) < Fraction(1, 10**13)
    assert tight > 300


def exactly(function: PiecewiseLinear, z: Fraction) -> Fraction:
    """The value in rational arithmetic, from the kinks and the slopes."""
    start = Fraction(function.kinks[0])
    value = Fraction(float(function(torch.tensor(function.kinks[0], dtype=torch.float64))))
    if z <= start:
        return value + Fraction(function.pieces[0]) * (z - start)
    for slope, end in zip(function.pieces[1:], [*map(Fraction, function.kinks[1:]), None], strict=True):
        if end is None or z <= end:
            return value + Fraction(slope) * (z - start)
        value, start = value + Fraction(slope) * (end - start), end
    raise AssertionError
