"""Weights from 1e-300 to 1e300: bounds stay above the truth, nothing overflows, underflows or divides by zero."""

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import certify, joint_bound, lipschitz, spectral_norm
from robustres.certify.bounds.head import Head
from robustres.certify.lower.jacobian import steepest_directions
from robustres.certify.maps.convolution import Convolution, Transposed
from robustres.certify.maps.coordinate_maps import Diagonal
from robustres.certify.maps.linear_map import Composition, Dense, Identity, LinearMap, Scaled, Sum
from robustres.certify.norms.linf_norm import linf_norm
from robustres.numerics import product_up, scaled_down, scaled_up, sum_up

SCALES = (1e-300, 1e-160, 1e150, 1e300)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def kinds(scale: float) -> dict[str, LinearMap]:
    root = math.sqrt(scale)
    return {
        "dense": Dense(scale * normal(3, 4)),
        "convolution": Convolution(scale * normal(2, 2, 3, 3), (2, 5, 5), padding=1),
        "transposed": Transposed(Convolution(scale * normal(2, 2, 3, 3), (2, 6, 6), 2, 1)),
        "channels": Diagonal(scale * normal(3), (3, 2, 2)),
        "scaled": Scaled(scale, Convolution(normal(2, 2, 3, 3), (2, 5, 5), padding=1)),
        "composition": Composition([Dense(root * normal(5, 4)), Dense(root * normal(3, 5))]),
        "sum": Sum((Scaled(scale, Identity((4,))), Dense(scale * normal(4, 4)))),
        "two ends": Composition(
            [Dense(1e-170 * normal(5, 4)), Scaled(scale, Identity((5,))), Dense(1e170 * normal(3, 5))]
        ),
        "zero": Dense(torch.zeros(3, 4)),
    }


@pytest.mark.parametrize("scale", SCALES)
def test_norms_of_every_method_lie_above_the_truth_at_every_scale(scale: float) -> None:
    for (name, map_), unit in zip(kinds(scale).items(), kinds(1.0).values(), strict=True):
        matrix = unit.dense()
        truth = float(torch.linalg.matrix_norm(matrix, 2))
        rows = float(matrix.abs().sum(1).max())
        for method in ("auto", "dense", "product", "lanczos"):
            bound = spectral_norm(map_, method=method)
            assert truth * (1 - 1e-12) <= bound.upper / scale, (name, method, bound)
            assert bound.upper / scale <= truth * (40 if method == "product" else 1.01) or name == "zero"
            assert bound.lower / scale <= truth * (1 + 1e-12)
        assert rows * (1 - 1e-12) <= linf_norm(map_) / scale <= rows * (1 + 1e-9) or name == "zero"


def test_norms_by_frequency_scale_with_the_kernel() -> None:
    kernel = normal(2, 2, 3, 3)
    unit = spectral_norm(Convolution(kernel, (2, 6, 6), padding=1), method="frequency").upper
    for scale in SCALES:
        found = spectral_norm(Convolution(scale * kernel, (2, 6, 6), padding=1), method="frequency").upper
        assert found / scale == pytest.approx(unit, rel=1e-9)


class Network(nn.Module):
    """Layers with weights of given sizes, and a residual block in the middle."""

    def __init__(self, sizes: tuple[float, ...], residual: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3, bias=False).double() for _ in sizes)
        self.residual = residual
        for place, (layer, size) in enumerate(zip(self.layers, sizes, strict=True)):
            layer.weight.data.copy_(size * (torch.eye(3) + 0.1 * normal(3, 3 + place)[:, :3]).double())

    def forward(self, x: Tensor) -> Tensor:
        first, inner, outer, last = self.layers
        x = first(x)
        branch = outer(torch.relu(inner(x)))
        return last(torch.relu(x + branch if self.residual else branch))  # type: ignore[no-any-return]


def exact_slope(model: Network) -> float:
    """The exact constant with all units active, computed in rational numbers; it is attained as a slope."""
    total = [[Fraction(int(i == j)) for j in range(3)] for i in range(3)]
    first, inner, outer, last = (
        [[Fraction(n) for n in row] for row in layer.weight.tolist()] for layer in model.layers
    )

    def times(left: list[list[Fraction]], right: list[list[Fraction]]) -> list[list[Fraction]]:
        return [
            [sum((a * b for a, b in zip(row, column, strict=True)), Fraction(0)) for column in zip(*right, strict=True)]
            for row in left
        ]

    branch = times(outer, inner)
    if model.residual:
        branch = [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(branch, total, strict=True)]
    matrix = times(last, times(branch, first))
    largest = max(abs(n) for row in matrix for n in row)
    unit = torch.tensor([[float(n / largest) for n in row] for row in matrix], dtype=torch.float64)
    value = Fraction(float(torch.linalg.matrix_norm(unit, 2))) * largest
    return float(value) if value < Fraction(2) ** 1023 else math.inf


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        (1e-165, 1e-165, 1e165, 1e165),
        (1.0, 1e-160, 1e160, 1.0),
        (1.0, 1e-200, 1e-200, 1.0),
        (1e-160, 1e150, 1e150, 1e-150),
        (1e150, 1e10, 1e10, 1e150),
    ],
)
def test_networks_of_extreme_weights_are_bounded_from_above_and_certified_without_a_crash(
    sizes: tuple[float, ...], residual: bool
) -> None:
    model = Network(sizes, residual)
    truth = exact_slope(model)
    for norm in ("l2", "linf"):
        report = lipschitz(model, (3,), norm=norm, lower_steps=0, effort=0.1)
        assert truth * (1 - 1e-12) <= report.upper
        smallest = min(row.upper for row in report.blocks)  # a constant below the smallest number is rounded up to it
        assert smallest < 1e-320 or report.upper <= max(20 * truth, 5e-324)
    x = torch.rand(2, 3, dtype=torch.float64)
    for certificate in ("lipschitz", "best"):
        radii = certify(model, x, report=report, certificate=certificate).radius  # type: ignore[arg-type]
        assert bool(torch.isfinite(radii).all())


@pytest.mark.parametrize("scale", SCALES)
def test_bounds_for_pairs_of_classes_keep_their_accuracy(scale: float) -> None:
    rows = normal(6, 4)
    for map_ in (Dense(scale * rows), Composition([Dense(scale * normal(5, 4)), Dense(normal(6, 5))])):
        truth = rows if isinstance(map_, Dense) else normal(6, 5) @ normal(5, 4)
        for norm, order in (("l2", 2.0), ("linf", 1.0)):
            found = Head(map_, 1.0, 1.0).pair_norms(2, norm) / scale
            exact = torch.linalg.vector_norm(truth - truth[2], ord=order, dim=1)
            assert bool((found >= exact * (1 - 1e-12)).all())
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_many_classes_do_not_need_a_matrix_of_classes_by_classes() -> None:
    head = Head(Dense(normal(5000, 16)), 1.0, 1.0)
    assert head.pair_norms(7, "l2").shape == (5000,)
    assert head.pair_norms(7, "l2") is head.pair_norms(7, "l2")
    pooled = Head(
        Composition(
            [
                Convolution(torch.full((16, 1, 7, 7), 1 / 49), (16, 7, 7), groups=16),
                Identity((16, 1, 1), (16,)),
                Dense(normal(30000, 16)),
            ]
        ),
        1.0,
        1.0,
    )
    rows = normal(30000, 16)
    exact = (rows - rows[3]).norm(dim=1) / 7
    torch.testing.assert_close(pooled.pair_norms(3, "l2"), exact, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("shortcut", "branch"), [(1.0, 1e-170), (1e-160, 1e-160), (1e150, 1e150), (1.0, 1e150), (1e-200, 1.0)]
)
def test_blocks_of_extreme_weights_have_a_joint_bound_or_the_textbook_bound(shortcut: float, branch: float) -> None:
    root = math.sqrt(branch)
    bound = joint_bound(
        Scaled(shortcut, Identity((4,))),
        Dense(root * torch.eye(4, dtype=torch.float64)),
        Dense(-2 * root * torch.eye(4, dtype=torch.float64)),
        effort=0.2,
    )
    truth = max(shortcut, abs(shortcut - 2 * branch))  # with each unit on or off
    assert truth * (1 - 1e-12) <= bound.upper <= (shortcut + 2 * branch) * (1 + 1e-9)
    if shortcut == branch:
        assert bound.upper <= 1.01 * truth


def test_products_sums_and_powers_of_two_round_up() -> None:
    assert product_up([1e-200] * 3 + [1e200] * 3) >= 1.0
    assert product_up([1e300, 1e300]) == math.inf
    assert product_up([1e-300, 1e-300]) > 0
    assert product_up([0.0, 1e300]) == 0.0
    assert product_up([math.nan, 0.0]) == math.inf
    assert product_up([0.1, 0.3]) >= Fraction(0.1) * Fraction(0.3)
    assert sum_up([1e308, 1e308]) == math.inf
    assert Fraction(sum_up([0.1] * 10)) >= 10 * Fraction(0.1)
    assert scaled_up(1.5, -1074) >= 1.5 * 2.0**-1073 / 2
    assert scaled_up(1.0, 1024) == math.inf
    assert scaled_down(1.0, 2000) < math.inf
    assert scaled_down(1.9, -1074) <= 2.0**-1074


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_the_steepest_direction_is_found_at_every_scale_of_the_jacobian(scale: float) -> None:
    matrix = normal(4, 3)
    x, start = normal(2, 3), normal(2, 3)
    found = steepest_directions(lambda v: (v * scale) @ matrix.T, x, start, steps=3)
    truth = float(torch.linalg.matrix_norm(matrix, 2))
    torch.testing.assert_close(found.stretch / scale, torch.full((2,), truth, dtype=torch.float64))
    nothing = steepest_directions(lambda v: v * 1e300 * 1e300, x, start, steps=3)
    assert bool((nothing.stretch == 0).all())


def test_a_wide_first_layer_whose_squares_underflow_is_bounded() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)).double()
    with torch.no_grad():
        model[0].weight *= 1e-100
        model[3].weight *= 1e-100
    report = lipschitz(model, (1, 6, 6), effort=0.1, whole_effort=10.0)
    assert 0 < report.lower <= report.upper < 1e-197
