"""Activations written in several operations are recognised as one activation with the correct slopes."""

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from robustres.certify import certify, lipschitz
from robustres.certify.graph.capture import capture
from robustres.certify.graph.network import Elementwise
from robustres.certify.graph.operation_rules import build_network
from robustres.certify.graph.reading import read_network
from robustres.certify.maps.smooth import GELU, GELU_TANH, MISH, SILU
from robustres.certify.maps.written import Written
from robustres.errors import UnsupportedOperationError
from tests.certify.apply import Apply

ROOT = math.sqrt(2 / math.pi)
WRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float]]] = {
    "SiLU": (lambda x: x * torch.sigmoid(x), SILU),
    "swish": (lambda x: x * torch.sigmoid(1.702 * x), SILU),
    "GELU": (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), GELU),
    "GELU with tanh": (lambda x: 0.5 * x * (1 + torch.tanh(ROOT * (x + 0.044715 * x.pow(3)))), GELU_TANH),
    "Mish": (lambda x: x * torch.tanh(F.softplus(x)), MISH),
    "hardswish": (lambda x: x * F.relu6(x + 3) / 6, (-0.5, 1.5)),
    "leaky ReLU": (lambda x: torch.where(x > 0, x, 0.1 * x), (0.1, 1.0)),
    "leaky ReLU, other way": (lambda x: torch.where(x <= 0, -0.5 * x, x), (-0.5, 1.0)),
    "ELU": (lambda x: torch.where(x > 0, x, torch.exp(x) - 1), (0.0, 1.0)),
    "softsign": (F.softsign, (0.0, 1.0)),
    "softshrink": (F.softshrink, (0.0, 1.0)),
    "x tanh x": (lambda x: x * torch.tanh(x), (-1.1996786402577338, 1.1996786402577338)),
    "logarithm": (lambda x: torch.log(1 + x.relu()), (0.0, 1.0)),
    "log1p": (lambda x: torch.log1p(x.abs()), (-1.0, 1.0)),
    "logarithm of a clamp": (lambda x: torch.log(x.clamp_min(0.1)), (0.0, 10.0)),
    "root of a clamp": (lambda x: torch.sqrt(x.relu() + 0.25), (0.0, 1.0)),
    "root of a square": (lambda x: torch.sqrt(x**2 + 1e-2), (-1.0, 1.0)),
    "inverse root": (lambda x: x.clamp_min(0.25).rsqrt(), (-4.0, 0.0)),
    "softsign with a root": (lambda x: x * torch.rsqrt(1 + x * x), (0.0, 1.0)),
    "inverse square": (lambda x: x.clamp_min(0.5) ** -2, (-16.0, 0.0)),
    "SiLU with exp": (lambda x: x / (1 + torch.exp(-x)), SILU),
    "sigmoid by two exponentials": (lambda x: torch.exp(x) / (torch.exp(x) + 1), (0.0, 0.25)),
    "softplus with exp": (lambda x: torch.log(1 + torch.exp(2 * x)), (0.0, 2.0)),
    "softplus with log1p": (lambda x: torch.log1p(torch.exp(x)), (0.0, 1.0)),
    "Mish with exp": (lambda x: x * torch.tanh(torch.log1p(torch.exp(x))), MISH),
    "ReLU by a factor": (lambda x: x * (x > 0).to(x), (0.0, 1.0)),
    "ReLU in place": (lambda x: x.clone().index_put_((x < 0,), x.new_tensor(0.0)), (0.0, 1.0)),
    "bell": (lambda x: torch.exp(-x * x), (-math.sqrt(2 / math.e), math.sqrt(2 / math.e))),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_function_written_in_several_operations_has_the_slopes_of_the_function(name: str) -> None:
    function, slopes = WRITTEN[name]
    report = lipschitz(Apply(function), (3,), lower_steps=4)
    largest = max(map(abs, slopes))
    assert largest * (1 - 1e-12) <= report.upper <= largest * (1 + 1e-5) + 1e-5
    assert report.lower <= report.upper


def test_slopes_and_values_on_intervals_contain_those_of_the_function() -> None:
    for name in ("SiLU", "leaky ReLU, other way", "softsign"):
        function, _ = WRITTEN[name]
        output, _ = build_network(capture(Apply(function), (3,)))
        assert output is not None
        assert isinstance(output.piece, Elementwise)
        kind = output.piece.function
        assert isinstance(kind, Written)
        ends = torch.randn(2, 200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
        lower, upper = ends.amin(0), ends.amax(0)
        low, high = kind.slopes_on(lower, upper)
        bottom, top = kind.values_on(lower, upper)
        points = lower + (upper - lower) * torch.linspace(0, 1, 65, dtype=torch.float64)[:, None, None]
        values = function(points)
        quotients = values.diff(dim=0) / points.diff(dim=0)
        assert bool(((values >= bottom) & (values <= top)).all())
        assert bool(((quotients >= low - 1e-9) & (quotients <= high + 1e-9)).all())
        near = (quotients.amax(0) >= high - 0.2) & (quotients.amin(0) <= low + 0.2)
        assert float(near.double().mean()) > 0.8


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: torch.where(x > 0, x, torch.exp(x) - 2), "yes or no"),
        (lambda x: torch.where(x > 1, x, 2 * x), "yes or no"),
        (F.hardshrink, "which jumps"),
        (lambda x: x * x, "mul of two values that both depend on the input"),
        (lambda x: x * torch.relu(x), "mul of two values that both depend on the input"),
        (lambda x: x * torch.sin(x), "mul of two values that both depend on the input"),
        (lambda x: x.flip(1) * torch.sigmoid(x), "mul of two values that both depend on the input"),
        (lambda x: torch.exp(x) + 1, "exp whose slope grows"),
        (lambda x: torch.sqrt(x.relu()), "sqrt which has no bound near 0"),
        (lambda x: torch.log(x.abs()), "log which has no bound near 0"),
        (lambda x: x.abs() ** 0.5, "pow which has no bound near 0"),
        (lambda x: torch.where(x > 1, torch.log(x), 0 * x - 1), "yes or no"),
        (lambda x: x / (1 - x.abs()), "div by a value"),
    ],
)
def test_functions_that_jump_or_have_no_finite_slope_are_refused(
    function: Callable[[Tensor], Tensor], words: str
) -> None:
    report = lipschitz(Apply(function), (3,), refuse="record")
    assert report.upper == math.inf
    assert any(words in refusal.operation for refusal in report.refused), report.refused


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.where(x > 0, torch.where(x > 1e-9, x, x + 5), x),
        lambda x: torch.where(
            x > 1 / 3, torch.where(3 * x > 1, x, x + 5), x
        ),  # no float64 lies in between, but real numbers do
        lambda x: torch.where(x >= 0, torch.where(x > 0, x, x + 5), x),
        lambda x: torch.where(x <= 1, torch.where(x < 1, x, x + 5), x),
        lambda x: torch.where(x > 0, torch.where(x >= 1e-3, x, 100 * x), x),  # at 1e-3, visible only between the points
        lambda x: torch.where(x < 0, torch.where(x < -1e-3, x, 100 * x), x),
        lambda x: x + 5 * (1 - torch.sign(x) * torch.sign(x)),
        lambda x: torch.where(x > 0, x, x + 1e-13),
        lambda x: x + 1e-13 * torch.sign(x),
        lambda x: torch.where(x > 0, x, x - 1e-20),
        lambda x: torch.sign(x) * (x.abs() + 1e-300),
        lambda x: torch.where(x > 1e8, x, x + 1e-6),
        lambda x: x * (x > 1),
        lambda x: x.masked_fill(x < 1, 0.0),
        lambda x: x * ((x > 0) + (x > 0)),  # the sum of booleans is a logical or
    ],
)
def test_a_jump_is_found_however_narrow_or_small(function: Callable[[Tensor], Tensor]) -> None:
    assert lipschitz(Apply(function), (3,), refuse="record", lower_steps=0).upper == math.inf


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.where(x * 1e-320 > 0, 5e3 * x, x),  # decided at 2.5e-4, with a radius beside it
        lambda x: torch.where((x + 1e16) - 1e16 > 0, 5 * x, x),
        lambda x: torch.where(1e16 * x + 1 > 1e16 * x - x, 5 * x + 4, x),
        lambda x: torch.where((1e17 * x + x) - 1e17 * x > 0, x, 5 * x),
        lambda x: torch.where(x * 1e-300 * 1e300 > 0, 5 * x, x),
    ],
)
def test_a_decision_that_rounding_moves_is_not_taken_for_the_exact_one(function: Callable[[Tensor], Tensor]) -> None:
    assert lipschitz(Apply(function), (3,), refuse="record", lower_steps=0).upper == math.inf


@pytest.mark.parametrize(
    ("function", "constant"),
    [
        (lambda x: x * (x > 0), 1.0),
        (lambda x: torch.where(x - 0.1 > 0.2, 1e6 * (x - 0.1 - 0.2), 0 * x), 1e6),
        (lambda x: x * (x > 0) + 0.1 * x * (x <= 0), 1.1),
        (lambda x: x.masked_fill(x < 0, 0.0), 1.0),
        (lambda x: torch.where(x.abs() < 1, 0.5 * x * x, x.abs() - 0.5), 1.0),
        (lambda x: torch.where(torch.ones(()).double() < x, 2 * x - 1, x), 2.0),
        (lambda x: torch.where(3 * x > 1, 3 * x - 1, 0 * x), 3.0),
        (lambda x: torch.where(x > 3, x, torch.where(x < -3, 0 * x, x * (x + 3) / 6)), 1.5),
    ],
)
def test_a_condition_without_a_jump_has_the_slopes_of_its_branches(
    function: Callable[[Tensor], Tensor], constant: float
) -> None:
    upper = lipschitz(Apply(function), (3,), lower_steps=0).upper
    assert constant * 0.9 <= upper <= constant * (1 + 1e-5)


def test_a_hand_written_activation_is_certified_with_its_rounding_errors() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), Apply(WRITTEN["SiLU"][0]), nn.Linear(5, 3))
    plain = nn.Sequential(nn.Flatten(), model[1], nn.SiLU(), model[3])
    x = torch.rand(4, 1, 2, 2)
    ours, theirs = certify(model, x), certify(plain, x)
    assert torch.equal(ours.prediction, theirs.prediction)
    torch.testing.assert_close(ours.radius, theirs.radius, rtol=1e-4, atol=1e-9)


def test_rounding_that_later_operations_enlarge_is_charged() -> None:
    function = Apply(lambda x: torch.where(x > 0, ((x * 1e-10 + 1) - 1) * 1e5 * 1e5, 0.1 * x))
    captured, network = read_network(nn.Sequential(nn.Flatten(), function), (1, 1, 3))
    (written,) = (node.piece.function for node in network.ordered() if isinstance(node.piece, Elementwise))
    x = torch.rand(3, 1, 1, 3, dtype=torch.float64) * torch.tensor([1.0, 30.0, 1e4]).reshape(3, 1, 1, 1)
    error = (captured.run({captured.source: x}, captured.output) - x.flatten(1)).abs()
    own = written.rounding(torch.float64)
    assert own is not None
    assert float(error.max()) > 1e-9
    assert bool((error <= own.relative * (written.constant + 1) * x.flatten(1) + own.lost).all())


RADIAL: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "F.normalize": (lambda x: F.normalize(x, eps=1e-2), 100.0),
    "length and eps": (lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-2), 100.0),
    "clamped length": (lambda x: x / x.norm(dim=1, keepdim=True).clamp_min(1e-2), 100.0),
    "variance": (lambda x: centred(x) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-4), 100.0),
    "squares": (lambda x: centred(x) * torch.rsqrt(centred(x).pow(2).mean(1, keepdim=True) + 1e-4), 100.0),
    "deviation": (lambda x: centred(x) / (x.std(1, keepdim=True) + 1e-2), 100.0),
    "RMS": (lambda x: x * torch.rsqrt((x * x).mean(1, keepdim=True) + 1e-4), 100.0),
    "tanh of the length": (lambda x: x * torch.tanh(3 * x.norm(dim=1, keepdim=True)), 1.19968),
    "sum of squares": (lambda x: x / (x.square().sum(1, keepdim=True) + 1e-4).sqrt(), 100.0),
}


def centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


@pytest.mark.parametrize("name", RADIAL)
def test_a_value_over_a_function_of_its_own_length_has_the_steepest_slope_along_or_across(name: str) -> None:
    function, constant = RADIAL[name]
    report = lipschitz(Apply(function), (5,), lower_steps=0)
    assert report.l2_upper == pytest.approx(constant, rel=1e-5)
    attained = 0.0
    directions = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for x in F.normalize(directions) * torch.logspace(-5, 1, 60, dtype=torch.float64)[:, None]:
        jacobian = torch.autograd.functional.jacobian(lambda z: function(z[None])[0], x)
        attained = max(attained, float(torch.linalg.matrix_norm(jacobian, 2)))
        assert float(jacobian.abs().sum(1).max()) <= report.linf_upper
    assert 0.97 * constant <= attained <= report.l2_upper


def test_a_length_of_another_value_or_without_a_floor_has_no_bound() -> None:
    for function in (
        lambda x: x / (2 * x).norm(dim=1, keepdim=True),
        lambda x: x / (x[:, :1].norm(dim=1, keepdim=True) + 1),
        lambda x: x / (x + 1).norm(dim=1, keepdim=True).clamp_min(1.0),
        lambda x: x * x.norm(dim=1, keepdim=True),
    ):
        assert lipschitz(Apply(function), (3,), refuse="record", lower_steps=0).refused


@pytest.mark.parametrize("name", ["exp2", "log2", "log10"])
def test_exponentials_and_logarithms_of_other_bases_are_read_by_their_definitions(name: str) -> None:
    function = getattr(torch, name)
    report = lipschitz(Apply(lambda x: function(x.clamp(1, 2))), (3,), lower_steps=0)
    slopes = {"exp2": 4 * math.log(2), "log2": 1 / math.log(2), "log10": 1 / math.log(10)}
    assert report.upper == pytest.approx(slopes[name], rel=1e-5)
    assert report.upper >= slopes[name]


EXACT: dict[str, Callable[[mpmath.mpf], mpmath.mpf]] = {
    "SiLU with exp": lambda x: x / (1 + mpmath.exp(-x)),
    "sigmoid by two exponentials": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus with exp": lambda x: mpmath.log1p(mpmath.exp(2 * x)),
    "softplus with log1p": lambda x: mpmath.log1p(mpmath.exp(x)),
    "Mish with exp": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
}


@pytest.mark.parametrize("name", EXACT)
def test_errors_of_computed_exponentials_are_charged(name: str) -> None:
    function, _ = WRITTEN[name]
    output, _ = build_network(capture(Apply(function), (1,)))
    assert output is not None
    assert isinstance(output.piece, Elementwise)
    rounding = output.piece.function.rounding(torch.float64)
    assert rounding is not None
    assert rounding.reach <= 704 or name == "SiLU with exp"  # beyond it the exponential overflows
    x = torch.cat([torch.linspace(-rounding.reach, rounding.reach, 1001), torch.linspace(-3, 3, 501)]).double()
    values = function(x)
    with mpmath.workdps(50):
        exact = (EXACT[name](mpmath.mpf(at)) for at in x.tolist())
        errors = [abs(float(mpmath.mpf(value) - truth)) for value, truth in zip(values.tolist(), exact, strict=True)]
    allowed = rounding.relative * (output.piece.function.constant * x.abs() + values.abs()) + rounding.lost
    assert bool((torch.tensor(errors).double() <= allowed).all())


LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "root of a sum of squares": lambda x: torch.sqrt(x.square().sum(1)),
    "power of a sum of squares": lambda x: (x * x).sum(1, keepdim=True) ** 0.5,
    "root of a mean of squares": lambda x: torch.sqrt((x**2).mean(1)),
    "with eps": lambda x: torch.sqrt((x**2).sum(1) + 1e-6),
    "bump": lambda x: 1 / (1 + x.square().sum(1)),
    "steep": lambda x: (x.square().sum(1) + 1e-4).rsqrt(),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_function_of_a_sum_of_squares_is_one_of_the_length(name: str) -> None:
    constant = {
        "root of a mean of squares": math.sqrt(1 / 3),
        "bump": 3 * math.sqrt(3) / 8,
        "steep": 2 / math.sqrt(27) * 1e4,
    }.get(name, 1.0)
    report = lipschitz(Apply(lambda x: LENGTHS[name](x).reshape(len(x), -1)), (3,), lower_steps=16)
    assert constant * (1 - 1e-12) <= report.upper <= constant * (1 + 1e-5)
    assert report.lower <= report.upper


def test_the_larger_of_two_values_may_be_chosen_by_comparing_them() -> None:
    for chosen in (
        lambda x: torch.where(x > x.flip(1), x, x.flip(1)),
        lambda x: torch.where(x.flip(1) <= x, x, x.flip(1)),
        lambda x: torch.where(x < x.flip(1), x, x.flip(1)),
    ):
        assert lipschitz(Apply(chosen), (2,)).upper == pytest.approx(math.sqrt(2), rel=1e-9)
    repeated = lambda x: torch.where(x[:, :1] > x, x[:, :1], x)  # noqa: E731
    assert math.sqrt(2) <= lipschitz(Apply(repeated), (2,)).upper <= math.sqrt(3) * (1 + 1e-9)
    with pytest.raises(UnsupportedOperationError, match="jumps"):
        lipschitz(Apply(lambda x: torch.where(x > x.flip(1), x, 2 * x.flip(1))), (2,))


def test_the_square_under_a_root_that_underflows_is_charged() -> None:
    class Lost(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            small = x * 1e-170
            return super().forward(torch.sqrt(small * small) * 1e170)  # 0 in float64, |x| exactly

    assert not bool(certify(Lost(4, 3).double(), torch.rand(5, 4).double()).radius.any())
