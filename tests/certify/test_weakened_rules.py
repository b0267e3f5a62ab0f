"""What a rule that is too small by a factor would change: attained bounds, and functions that are those of torch."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from robustres.certify import certify, lipschitz
from robustres.certify.blocks.front import Front, Repair, Space
from robustres.certify.blocks.increments import SectorLayer, spread
from robustres.certify.fourier.matrix_polynomial import polynomial
from robustres.certify.graph.network import Elementwise, Merge
from robustres.certify.graph.reading import read_network
from robustres.certify.graph.rules_activation import ACTIVATIONS
from robustres.certify.maps.convolution import Convolution, along_axis
from robustres.certify.maps.coordinate_maps import Selection
from robustres.certify.maps.folding import channel_order
from robustres.certify.maps.linear_map import Dense
from robustres.certify.maps.per_coordinate import PerCoordinate
from robustres.certify.maps.piecewise_linear import Abs, Relu
from robustres.certify.maps.smooth import Tanh
from robustres.certify.norms.linf_norm import linf_norm
from robustres.certify.proof.bound import Bound
from robustres.certify.proof.cholesky_proof import proved_definite
from robustres.certify.proof.largest_singular_value import GRAM_BLOCK, gram, proved_top
from robustres.certify.radii.smoothing import smoothed_radius
from robustres.errors import InputError, UnsupportedOperationError
from tests.certify.apply import Apply

aten = torch.ops.aten
SLOPES = torch.tensor([-0.5, 0.25, 2.0], dtype=torch.float64)
SPELT: dict[str, Callable[[Tensor], Tensor]] = {
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "clamp": lambda x: x.clamp(-0.3, 0.7),
    "clip": lambda x: x.clip(-0.3, 0.7),
    "clamp_min": lambda x: x.clamp_min(-0.3),
    "clamp_max": lambda x: x.clamp_max(0.7),
    "threshold": lambda x: F.threshold(x, 0.4, 0.4),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "prelu": lambda x: F.prelu(x, SLOPES),
    "_prelu_kernel": lambda x: aten._prelu_kernel(x, SLOPES),
    "rrelu": lambda x: F.rrelu(x, 0.2, 0.6),
    "softshrink": lambda x: F.softshrink(x, 0.4),
    "hardshrink": lambda x: F.hardshrink(x, 0.0),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": lambda x: F.softplus(x, 0.5, 20.0),
    "elu": lambda x: F.elu(x, 0.7),
    "celu": lambda x: F.celu(x, 0.4),
    "log_sigmoid": F.logsigmoid,
    "log_sigmoid_forward": lambda x: aten.log_sigmoid_forward(x)[0],
}


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "rrelu_with_noise"])  # refused by name
def test_an_activation_has_the_values_of_torchs_operation(name: str) -> None:
    function = SPELT.get(name, getattr(aten, name))
    _, output = read_network(Apply(function), (3,))
    assert isinstance(output.piece, Elementwise)
    kind = output.piece.function
    x = torch.cat([torch.linspace(-60, 60, 1201), torch.linspace(-3, 3, 601)]).double()[:, None].expand(-1, 3)
    wanted = function(x)
    allowed = kind.jump + 1e-13 * (x.abs() + wanted.abs())
    assert bool(((kind(x) - wanted).abs() <= allowed).all())


def test_constants_are_attained() -> None:
    two = torch.zeros(1, 2, dtype=torch.float64)
    softmax = torch.autograd.functional.jacobian(lambda x: x.softmax(1), two).reshape(2, 2)  # type: ignore[no-untyped-call]
    assert lipschitz(Apply(lambda x: x.softmax(1)), (2,)).upper >= float(torch.linalg.matrix_norm(softmax, 2)) == 0.5
    assert lipschitz(Apply(lambda x: x.softmax(1)), (2,), norm="linf").upper >= float(softmax.abs().sum(1).max())
    folded = lipschitz(Apply(lambda x: x - F.leaky_relu(x, -0.5)), (1,)).upper  # slopes 0 and 1.5
    assert 1.5 * (1 - 1e-12) <= folded <= 1.5 * (1 + 1e-6)


def test_the_linf_constant_of_a_normalisation_exceeds_its_l2_constant() -> None:
    size = 9
    x = torch.full((1, size), 1 / math.sqrt(2 * (size - 1)), dtype=torch.float64)
    x[0, 0] = -math.sqrt(0.5)
    slopes = torch.autograd.functional.jacobian(lambda z: F.normalize(z, eps=1.0), x * (1 + 1e-9))  # type: ignore[no-untyped-call]
    attained = float(slopes.reshape(size, size).abs().sum(1).max())
    assert attained > 1.5
    assert lipschitz(Apply(lambda z: F.normalize(z, eps=1.0)), (size,), norm="linf").upper >= attained
    assert lipschitz(Apply(lambda z: F.normalize(z, eps=1.0)), (size,)).upper == pytest.approx(1, rel=1e-5)


def test_a_matrix_along_an_axis_is_that_matrix() -> None:
    matrix = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(along_axis(matrix, (5, 3, 2), 1)(x), torch.einsum("oi,naib->naob", matrix, x))


def test_repeated_channels_are_no_permutation() -> None:
    places = torch.arange(12).reshape(3, 2, 2)
    assert channel_order(Selection(places[[0, 0, 2]].flatten(), (3, 2, 2), (3, 2, 2))) is None
    order = channel_order(Selection(places[[1, 2, 0]].flatten(), (3, 2, 2), (3, 2, 2)))
    assert order is not None
    assert order.tolist() == [1, 2, 0]
    twice = lipschitz(Apply(lambda x: F.conv2d(x[:, [0, 0, 2]], torch.ones(1, 3, 1, 1).double()).flatten(1)), (3, 2, 2))
    assert twice.upper == pytest.approx(math.sqrt(5), rel=1e-9)


@pytest.mark.parametrize("exponent", [-160, 0, 150])
def test_a_row_sum_has_the_scale_of_the_map(exponent: int) -> None:
    matrix = torch.tensor([[1.0, -2.0], [0.5, 0.25]], dtype=torch.float64) * 10.0**exponent
    truth = 3 * 10.0**exponent
    assert truth * (1 - 1e-12) <= linf_norm(Dense(matrix, (2,), (2,))) <= truth * (1 + 1e-9)


def test_samples_that_are_treated_by_their_places_are_refused() -> None:
    def by_place(x: Tensor) -> Tensor:
        place = torch.arange(len(x))
        return torch.stack([x.flatten(1)[place, place % 2], x.flatten(1)[:, 2]], 1)

    with pytest.raises(UnsupportedOperationError, match="samples of a batch"):
        lipschitz(Apply(by_place), (1, 128, 128))  # too large for batches in which that would show


def test_a_largest_eigenvalue_proved_from_its_ritz_value_is_above_it() -> None:
    rows = torch.randn(60, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hermitian = rows.T @ rows
    truth = float(torch.linalg.eigvalsh(hermitian)[-1])
    assert truth <= proved_top(hermitian, 0.0, margins=(1e-6, 1e-3), steps=40) <= truth * (1 + 1e-3)
    assert math.isinf(proved_top(hermitian, truth, margins=(1e-6, 1e-3), steps=40))
    assert not bool(proved_definite(torch.diag(torch.tensor([1.0, 1.0, -1e-3], dtype=torch.float64))[None]))


def test_a_product_of_polynomials_rounds_as_often_as_its_factors_and_itself() -> None:
    kernel = torch.randn(3, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, _ = polynomial(Convolution(kernel, (3, 8, 8), padding=1), (1, 1))
    assert (one @ one).roundings >= 2 * one.roundings + 3 + 9


def test_slack_of_a_sum_covers_all_its_terms() -> None:
    _, total = read_network(Apply(lambda x: x.relu() + x.abs()), (3,))
    assert isinstance(total.piece, Merge)
    front = Front(total, torch.eye(3, dtype=torch.float64)[None], Repair(), Space(), slack=1.0)
    front.merge(total, total.piece)
    assert [front.slack[term] >= 2 for term in total.inputs] == [True, True]  # |a + b|^2 <= 2 |a|^2 + 2 |b|^2


class Triple(nn.Module):
    """3 x, which states its bound."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        return Bound(3.0, 3.0, "by construction")


def test_the_constant_of_a_bounded_layer_counts_in_the_elimination() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()
    report = lipschitz(nn.Sequential(first, Triple(), nn.ReLU(), last), (4,))
    patterns = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 4)
    truth = max(
        float(torch.linalg.matrix_norm(3 * last.weight.detach() @ (d[:, None] * first.weight.detach()), 2))
        for d in patterns
    )
    assert report.whole is not None
    assert truth <= report.whole.upper <= report.product * (1 + 1e-6)


def test_an_error_of_the_rows_of_a_cut_enlarges_its_factor() -> None:
    _, total = read_network(Apply(torch.relu), (3,))
    front = Front(total, torch.eye(3, dtype=torch.float64)[None], Repair(loss=0.25), Space(), slack=1.0)
    front._charge(total, 0.5)
    # |(G + E) d|^2 <= (1 + loss) |G d|^2 + (1 + 1 / loss) |E|^2 |d|^2
    assert front.factor >= 1.25
    assert front.factor * front.slack[total] >= 1 + 1.25 * 0.5**2 / 0.25


def test_outputs_that_may_be_cut_off_have_zero_among_their_slopes() -> None:
    one = torch.ones(2, dtype=torch.float64)
    layer = SectorLayer(0.5 * one, one, torch.arange(2), 2, (2,))
    cut, whole = spread(layer, (2, 3), cut=True), spread(layer, (2, 3))
    assert (cut.lower.max(), cut.upper.min(), whole.lower.min()) == (0.0, 1.0, 0.5)


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0, math.nan])
def test_a_smoothed_radius_needs_a_majority(probability: float) -> None:
    assert smoothed_radius(probability, 1.0) == 0


class Beyond(nn.Linear):
    """A layer with a weight that matters for large values only."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.steep = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h + self.steep * torch.relu(h - 1e6)


def test_a_weight_that_no_answer_shows_is_compared() -> None:
    model, x = Beyond(), torch.rand(3, 4)
    report = lipschitz(model, (4,))
    assert bool((certify(model, x, report=report).radius > 0).all())
    model.steep.data.fill_(50.0)
    with pytest.raises(InputError, match="report is for other weights"):
        certify(model, x, report=report)


def test_values_beyond_the_reach_of_a_rounding_bound_have_no_radius() -> None:
    model = nn.Sequential(
        Apply(lambda x: 1000 * x), Apply(lambda x: torch.log(1 + torch.exp(x))), nn.Linear(2, 2)
    ).double()
    x = torch.tensor([[0.9, 0.1], [0.09, 0.01]], dtype=torch.float64)
    radius = certify(model, x).radius  # the exponential may overflow from 704 on
    assert float(radius[0]) == 0.0 < float(radius[1])


def test_every_coordinate_has_its_own_function() -> None:
    kind = PerCoordinate((Relu(), Tanh(), Abs()), torch.tensor([1, 0, 2]))
    x = torch.tensor([[-2.0, -2.0, -2.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(kind(x), torch.stack([x[:, 0].tanh(), x[:, 1].relu(), x[:, 2].abs()], 1))
    low, high = kind.slopes_on(x[0], x[0] + 1)
    assert (float(high[1]), float(low[2]), float(high[2])) == (0.0, -1.0, -1.0)


def test_both_triangles_of_a_wide_gram_matrix_are_those_of_the_product() -> None:
    rows = torch.randn(1, 6, 2 * GRAM_BLOCK + 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram(rows), rows.mT @ rows, rtol=1e-12, atol=1e-12)
