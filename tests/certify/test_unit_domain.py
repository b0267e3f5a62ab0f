"""Bounds on images in [0, 1]^n: products of values, the slopes that activations reach, radii inside the domain."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import certify, lipschitz
from robustres.certify.blocks.fixed_point import search
from robustres.certify.blocks.torus_bound import torus_bound
from robustres.certify.blocks.torus_network import on_tori
from robustres.certify.bounds.unit_domain import on_unit_domain
from robustres.certify.graph.network import Elementwise, Product
from robustres.certify.graph.reading import read_network
from robustres.errors import InputError, RobustresError, UnsupportedOperationError
from tests.certify.apply import Apply
from tests.certify.fuzz.fast_export import one_table
from tests.certify.fuzz.grammar import Recorded, drawn, numbers_of


class Gated(nn.Module):
    """Squeeze and excitation in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 3, padding=1)
        self.squeeze, self.excite, self.head = nn.Linear(3, 2), nn.Linear(2, 3), nn.Linear(27, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = torch.relu(self.convolution(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(values.mean((2, 3))))))
        return self.head((values * gate[:, :, None, None] + values).flatten(1))


class Square(nn.Module):
    """x_1 x_2, steepest at (1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * x[:, 1:]


def steepest(model: nn.Module, shape: tuple[int, ...]) -> float:
    """The largest Jacobian norm at random points and corners of the domain."""
    exact, largest = model.double(), 0.0
    generator = torch.Generator().manual_seed(0)
    for k in range(40):
        x = torch.rand(1, *shape, dtype=torch.float64, generator=generator)
        x = x.round() if k % 2 else x
        jacobian = torch.autograd.functional.jacobian(lambda z: exact(z).flatten(), x).flatten(1)
        largest = max(largest, float(torch.linalg.matrix_norm(jacobian, 2)))
    return largest


@pytest.mark.parametrize("seed", range(4))
def test_squeeze_and_excitation_is_bounded_on_the_domain(seed: int) -> None:
    torch.manual_seed(seed)
    model = Gated()
    with pytest.raises(UnsupportedOperationError, match="domain='unit'"):
        lipschitz(model, (2, 3, 3))
    for norm in ("l2", "linf"):
        report = lipschitz(model, (2, 3, 3), domain="unit", norm=norm)  # type: ignore[arg-type]
        assert report.domain == "unit"
        assert report.lower <= report.upper < float("inf")
    report = lipschitz(model, (2, 3, 3), domain="unit", images=torch.rand(4, 2, 3, 3))
    assert "on [0, 1]^n" in str(report)
    assert steepest(model, (2, 3, 3)) <= report.upper


def test_radii_hold_inside_the_domain_and_are_zero_for_images_outside() -> None:
    torch.manual_seed(0)
    model = Gated().double()
    report = lipschitz(model, (2, 3, 3), domain="unit")
    x = torch.rand(6, 2, 3, 3, dtype=torch.float64)
    x[3] += 1
    found = certify(model, x, report=report)
    assert float(found.radius[3]) == 0
    assert bool((found.radius[[0, 1, 2, 4, 5]] > 0).all())
    direction = torch.randn(200, 6, 2, 3, 3, dtype=torch.float64)
    direction = direction / direction.flatten(2).norm(dim=2)[:, :, None, None, None]
    other = x + direction * found.radius[:, None, None, None]
    inside = ((other >= 0) & (other <= 1)).flatten(2).all(2)
    answers = model(other.flatten(0, 1)).argmax(1).reshape(200, 6)
    assert bool((answers == found.prediction)[inside].all())


def test_the_product_rule_is_attained_up_to_the_sum_of_both_sides() -> None:
    report = lipschitz(nn.Sequential(Square()), (2,), domain="unit")
    assert 2**0.5 <= report.upper <= 2 * (1 + 1e-6)


class Power(nn.Module):
    """The powers of x - 1/4, steepest at 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([(x - 0.25) ** 3, torch.square(x - 0.25)], 1)


def test_a_power_is_bounded_on_the_domain_by_its_largest_slope() -> None:
    with pytest.raises(UnsupportedOperationError, match="grows without limit"):
        lipschitz(Power(), (1,))
    slopes = 3 * 0.75**2, 2 * 0.75
    upper = lipschitz(Power(), (1,), domain="unit").upper
    assert steepest(Power(), (1,)) <= upper
    assert upper == pytest.approx((slopes[0] ** 2 + slopes[1] ** 2) ** 0.5, rel=1e-6)


def test_activations_are_bounded_by_the_slopes_that_they_attain() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))
        model[1].bias.fill_(3.0)
    everywhere, here = (lipschitz(model, (1, 1, 2), domain=domain) for domain in ("all", "unit"))  # type: ignore[arg-type]
    slope = float(torch.sigmoid(torch.tensor(3.0, dtype=torch.float64)) * torch.sigmoid(torch.tensor(-3.0)))
    assert here.upper == pytest.approx(everywhere.upper * slope / 0.25, rel=1e-6)
    assert steepest(model, (1, 1, 2)) <= here.upper


def test_an_unknown_domain_is_refused() -> None:
    with pytest.raises(InputError, match="domain must be all or unit"):
        lipschitz(nn.Linear(2, 2), (2,), domain="ball")  # type: ignore[arg-type]


@pytest.mark.parametrize("convolutional", [False, True])
def test_neurons_that_cannot_switch_on_the_domain_have_fixed_slopes_in_the_whole_networks_bound(
    convolutional: bool,
) -> None:
    torch.manual_seed(0)
    shape: tuple[int, ...] = (2, 6, 6) if convolutional else (6,)
    model = (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )
        if convolutional
        else nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    ).double()  # fmt: skip
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias += torch.linspace(-2, 2, len(layer.bias))  # type: ignore[arg-type, union-attr, operator]
    everywhere, unit = lipschitz(model, shape), lipschitz(model, shape, domain="unit")
    assert unit.whole.upper < 0.9 * everywhere.whole.upper
    assert steepest(model, shape) <= unit.whole.upper
    if convolutional:
        assert unit.analysis is not None
        network = on_tori(unit.analysis.output, widest=64)
        point = search(network.order, network.layers, copies=4, steps=100)
        assert unit.whole.reachable <= torus_bound(network, point)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.cumprod(1),
        lambda x: x.prod(1, keepdim=True),
        lambda x: x.var(1, keepdim=True),
        lambda x: nn.functional.glu(x, 1),
        lambda x: nn.functional.bilinear(x, x.flip(1), torch.arange(32.0).reshape(2, 4, 4).to(x)),
    ],
)
def test_products_in_the_definition_of_an_operation_are_bounded_on_the_domain(
    function: Callable[[Tensor], Tensor],
) -> None:
    with pytest.raises(UnsupportedOperationError, match="in the definition of aten"):
        lipschitz(Apply(function), (4,))
    report = lipschitz(Apply(function), (4,), domain="unit")
    assert steepest(Apply(function), (4,)) <= report.upper < float("inf")


def boxes_hold(model: nn.Module, shape: tuple[int, ...]) -> bool | None:
    """Whether the slopes and factors of every value at many images, corners among them, are as stated; None if refused
    or unbounded."""
    try:
        captured, network = read_network(model, shape, on_unit_domain=True)
    except RobustresError:
        return None
    images = torch.rand(24, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images[::2] = images[::2].round()
    values: dict[object, list[Tensor]] = {captured.source: [images]}
    with torch.no_grad():
        captured.run_all(
            images,
            captured.source,
            captured.output,
            observe=lambda _, node, value: values.setdefault(node, []).append(value),
        )
    bounded, found = on_unit_domain(network, captured), []
    for node in bounded.ordered():
        if any(parent.origin is node.origin or parent.origin not in values for parent in node.inputs):
            continue
        inputs = [torch.cat(values[parent.origin]).reshape(len(images), *parent.shape) for parent in node.inputs]
        if isinstance(node.piece, Product):
            largest = node.piece.largest
            found += [bool((value.abs() <= most).all()) for value, most in zip(inputs, largest, strict=True)]
        if isinstance(node.piece, Elementwise) and node.piece.each is not None:
            low, high = (side.expand(inputs[0].shape[1:]) for side in node.piece.each)
            change, width = node.piece.function(inputs[0]).diff(dim=0), inputs[0].diff(dim=0)
            room = 1e-9 * (1 + inputs[0].abs()[1:] + inputs[0].abs()[:-1])
            ends = torch.stack([low * width, high * width])
            found.append(bool(((change >= ends.amin(0) - room) & (change <= ends.amax(0) + room)).all()))
    return all(found) if found else None


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 200), marks=pytest.mark.slow)])
def test_slopes_and_factors_on_the_domain_hold_for_drawn_programs(seeds: range) -> None:
    with one_table():
        outcomes = [boxes_hold(*drawn(Recorded(numbers_of(seed)))) for seed in seeds]
    assert all(outcome is not False for outcome in outcomes), outcomes
    assert sum(outcome is True for outcome in outcomes) >= len(seeds) / 4


def test_the_estimate_of_an_activation_is_attained_by_images() -> None:
    """The box of its argument is larger than the set of its values, so the steepest slope on the box is not."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)
    ).double()
    with torch.no_grad():
        model[3].bias.fill_(3.0)
    (row,) = (row for row in lipschitz(model, (1, 2, 2), domain="unit").blocks if row.kind == "activation")
    x = torch.cartesian_prod(*[torch.linspace(0, 1, 11, dtype=torch.float64)] * 4)
    with torch.no_grad():
        steepest = float((1 - torch.tanh(model[:4](x.reshape(-1, 1, 2, 2))).square()).max())
    assert 0 < row.lower <= steepest < row.upper
