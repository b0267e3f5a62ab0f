"""Every kind of activation and opaque map implements every function, with results that agree with its values."""

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

from robustres.certify.graph.call import NotCoveredError, require_fitting
from robustres.certify.graph.network import Elementwise, Merge
from robustres.certify.maps import curves, lengths, nonlinear, per_coordinate, piecewise_linear, smooth
from robustres.certify.maps.activation import Activation
from robustres.certify.maps.curves import Exp
from robustres.certify.maps.lengths import Length, Normalisation, Radial
from robustres.certify.maps.nonlinear import (
    Extremum,
    LogSoftmax,
    LogSumExp,
    MaxPool,
    Opaque,
    Running,
    Softmax,
    Sort,
    Stated,
    StatedSort,
)
from robustres.certify.maps.per_coordinate import PerCoordinate
from robustres.certify.maps.piecewise_linear import Abs, Clamp, Hardsigmoid, LeakyRelu, Relu, Softshrink
from robustres.certify.maps.scalar_expression import Applied, Inverse, Variable
from robustres.certify.maps.sector import GroupSort
from robustres.certify.maps.smooth import (
    Asinh,
    Atan,
    Cos,
    Elu,
    Erf,
    Erfc,
    Gelu,
    Hardswish,
    LogSigmoid,
    Mish,
    RootOfSquare,
    Sigmoid,
    Silu,
    Sin,
    Softplus,
    Tanh,
)
from robustres.certify.proof.bound import Bound
from robustres.certify.proof.rounding import Rounding

CHANNELS = torch.tensor([-0.5, 0.2, 1.5], dtype=torch.float64)
ACTIVATIONS: list[Activation] = [
    *(Relu(), Clamp(0.0, 6.0), Clamp(-1.0, math.inf), Clamp(-CHANNELS.abs(), CHANNELS.abs()), Clamp(1.0, -1.0), Abs()),
    *(LeakyRelu(0.1), LeakyRelu(CHANNELS), LeakyRelu(1.0), Softshrink(0.5), Softshrink(0.0), Hardsigmoid()),
    *(
        Sigmoid(),
        Tanh(),
        Erf(),
        Erfc(),
        Atan(),
        Asinh(),
        RootOfSquare(0.25),
        LogSigmoid(),
        Gelu(),
        Gelu("tanh"),
        Silu(),
        Mish(),
        Hardswish(),
        Sin(),
        Cos(),
        Exp(),
    ),
    PerCoordinate((Relu(), Tanh(), LeakyRelu(-0.3)), torch.tensor([1, 0, 2])),
    *(Softplus(2.0, 20.0), Elu(1.0), Elu(0.7), Elu(1.8), Elu(1.67, 1.05), Elu(0.5, 1.0, 2.0), Elu(-0.3), Elu(0.0)),
]
AT_MOST_ONE = Inverse(
    Applied(Clamp(0.5, math.inf), Applied(Abs(), Variable()))
)  # over the length, if that is above 1/2
OPAQUE: list[tuple[Opaque, tuple[int, ...]]] = [
    (Sort(0), (4, 2)),
    (Sort(1, descending=True, count=2), (3, 4)),
    (Sort(0, sorts=GroupSort(2)), (4, 2)),
    (Extremum((0,), largest=True), (3, 2)),
    (Running(0, 3, largest=True), (3, 2)),
    (Running(1, 2, largest=False), (3, 2)),
    (Extremum((0, 1), largest=False, keepdim=True), (3, 2)),
    (Sort(0, descending=True, sorts=GroupSort(2, "strided")), (4, 2)),
    (MaxPool((torch.tensor([[-1, 0, 1], [1, 2, 3]]), torch.tensor([[0, 1]]))), (2, 4, 2)),
    (Softmax(0, 3), (3, 2)),
    (LogSumExp((0,), 3), (3, 2)),
    *((LogSoftmax(0, 3), (3, 2)), (LogSoftmax(0, 1), (1, 2))),
    (Length((0,), 3), (3, 2)),
    (Length((0, 1), 6, 1.0, keepdim=True), (3, 2)),
    (Length((1,), 2, math.inf), (3, 2)),
    (Normalisation(1e-2, 1.0, 3, centred=True), (3,)),
    *((Radial((0,), 3, AT_MOST_ONE), (3, 2)), (Radial((0, 1), 6, AT_MOST_ONE), (3, 2))),
    (Stated(Bound(0.0, 2.0, "word"), (2,)), (3,)),
    (StatedSort(GroupSort(2)), (4,)),
]


def concrete(base: type, module: object) -> Iterator[type]:
    """Every concrete subclass of `base` in the module."""
    for kind in vars(module).values():
        here = inspect.isclass(kind) and kind.__module__ == module.__name__  # type: ignore[attr-defined]
        if here and issubclass(kind, base) and kind is not base and not inspect.isabstract(kind):
            yield kind


def test_every_kind_is_covered_and_implements_every_function() -> None:
    activations = {kind for file in (piecewise_linear, smooth, per_coordinate) for kind in concrete(Activation, file)}
    activations |= set(concrete(Activation, curves))
    elsewhere = {curves.Square, curves.Reciprocal, curves.Power, curves.Log}  # local/test_products_and_curves
    assert activations == {type(kind) for kind in ACTIVATIONS} | elsewhere
    opaque = {kind for file in (nonlinear, lengths) for kind in concrete(Opaque, file)}
    assert opaque == {type(kind) for kind, _ in OPAQUE}
    for kind in (*activations, *opaque):
        assert not kind.__abstractmethods__, kind  # type: ignore[attr-defined]


def intervals(count: int) -> tuple[Tensor, Tensor]:
    """Short and long intervals, near 0 and far away, (count, 3)."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randn(2, count, 3, dtype=torch.float64, generator=generator) * torch.logspace(-3, 1.3, count)[:, None]
    ends[:, ::7, 1] = ends[0, ::7, 1]  # single points
    ends[0, ::5, 2] = 0.0
    return ends.amin(0), ends.amax(0)


@pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda kind: type(kind).__name__)
def test_slopes_and_values_on_an_interval_contain_those_of_the_function(kind: Activation) -> None:
    lower, upper = intervals(400)
    low, high = kind.slopes_on(lower, upper)
    bottom, top = kind.values_on(lower, upper)
    assert bool((low <= high).all())
    assert bool((low >= kind.slopes[0]).all())
    assert bool((high <= kind.slopes[1]).all())
    shares = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None, None]
    points = lower + (upper - lower) * shares
    values = kind(points)
    assert bool((values >= bottom).all())
    assert bool((values <= top).all())
    quotients = values.diff(dim=0) / points.diff(dim=0)
    slack = 1e-9 + 4e-16 * values.abs().amax(0) / (upper - lower).clamp_min(1e-300) * 100
    wide = (upper > lower).expand_as(quotients)
    assert bool((quotients >= low - slack)[wide].all())
    assert bool((quotients <= high + slack)[wide].all())
    # for long intervals they are seldom wider than the true range
    long = upper - lower > 0.3
    near = (quotients.amax(0) >= high - 0.1) & (quotients.amin(0) <= low + 0.1)
    assert float(near[long].double().mean()) > 0.6


@pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda kind: type(kind).__name__)
def test_slopes_on_the_whole_line_are_those_of_the_kind(kind: Activation) -> None:
    ends = torch.full((3,), math.inf, dtype=torch.float64)
    low, high = kind.slopes_on(-ends, ends)
    degenerate = isinstance(kind, Clamp | Softshrink) and bool((low == high).all())  # an empty piece
    if not degenerate:
        assert float(low.min()) == pytest.approx(kind.slopes[0], abs=1e-12)
        assert float(high.max()) == pytest.approx(kind.slopes[1], abs=1e-12)
    assert kind.jump < 1e-8


EXTREME = [Softplus(1e-30, 20.0), Softplus(1e30, 20.0), Elu(1e30, 1.0, 1e-30), Elu(1e-30, 1e30), RootOfSquare(1e-30)]


@pytest.mark.parametrize("kind", [*ACTIVATIONS, *EXTREME], ids=lambda kind: type(kind).__name__)
def test_the_rounding_in_float32_is_as_stated_at_numbers_of_every_size(kind: Activation) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = 2.0 ** (270 * torch.rand(20000, 1, generator=generator, dtype=torch.float64) - 145)
    x = torch.cat([sizes, -sizes]).float().expand(-1, 3)
    own = kind.rounding(torch.float32)
    if own is None:
        assert isinstance(kind, Exp)
        return
    exact, room = kind(x.double()), kind.constant * x.double().abs()
    # A network writes out the root of a square; torch cuts off softplus.
    computed = (x * x + kind.shift).sqrt() if isinstance(kind, RootOfSquare) else kind(x)
    if isinstance(kind, Softplus):
        computed = torch.nn.functional.softplus(x, kind.beta, kind.threshold)
    allowed = own.relative * (room + exact.abs()) + own.lost + kind.jump
    counted = (x.abs() <= own.reach) & (exact.abs() < torch.finfo(torch.float32).max / 4)
    assert bool(((computed.double() - exact).abs() <= allowed)[counted].all())


@pytest.mark.parametrize(("kind", "shape"), OPAQUE, ids=lambda value: type(value).__name__)
def test_an_opaque_map_bounds_its_shape_values_and_pairs(kind: Opaque, shape: tuple[int, ...]) -> None:
    assert kind.kind
    assert kind.bound.upper >= 0
    assert kind.linf >= 0
    x, y = torch.randn(2, 200, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lower, upper = torch.minimum(x, y), torch.maximum(x, y)
    bottom, top = kind.values_on(lower, upper)
    assert bottom.shape == (200, *kind.out_shape(shape))
    assert bool((bottom <= top).all())
    if not callable(kind):
        return
    inside = kind(lower + (upper - lower) * torch.rand_like(x))
    assert bool((inside >= bottom - 1e-12).all())
    assert bool((inside <= top + 1e-12).all())
    change, distance = (kind(x) - kind(y)).flatten(1), (x - y).flatten(1)
    assert bool((change.norm(dim=1) <= kind.bound.upper * distance.norm(dim=1) * (1 + 1e-12)).all())
    assert bool((change.abs().amax(1) <= kind.linf * distance.abs().amax(1) * (1 + 1e-12)).all())


def _centred(x: list[Any]) -> list[Any]:
    return [value - sum(x) / len(x) for value in x]


def _exponentials(x: list[Any]) -> tuple[list[Any], Any]:
    values = [mpmath.exp(value) for value in x]
    return values, sum(values)


# Exact values of the maps of three values, along the first axis, and the operations of torch.
EXACT: dict[str, tuple[Opaque, Callable[[list[Any]], list[Any]], Callable[[Tensor], Tensor]]] = {
    "softmax": (
        Softmax(0, 3), lambda x: [part / _exponentials(x)[1] for part in _exponentials(x)[0]],
        lambda x: x.softmax(1),
    ),
    "logsumexp": (
        LogSumExp((0,), 3), lambda x: [mpmath.log(_exponentials(x)[1])], lambda x: x.logsumexp(1, keepdim=True)
    ),
    "log_softmax": (
        LogSoftmax(0, 3), lambda x: [value - mpmath.log(_exponentials(x)[1]) for value in x],
        lambda x: x.log_softmax(1),
    ),
    "l2": (
        Length((0,), 3), lambda x: [mpmath.sqrt(sum(value**2 for value in x))], lambda x: x.norm(dim=1, keepdim=True)
    ),
    "l1": (
        Length((0,), 3, 1.0), lambda x: [sum(abs(value) for value in x)], lambda x: x.norm(1, dim=1, keepdim=True)
    ),
    "normalize": (
        Radial((0,), 3, AT_MOST_ONE), lambda x: [v / max(mpmath.sqrt(sum(w**2 for w in x)), 0.5) for v in x],
        lambda x: torch.nn.functional.normalize(x, eps=0.5),
    ),
    "layer_norm": (
        Normalisation(1e-2, 1.0, 3, centred=True),
        lambda x: [z / mpmath.sqrt(sum(v**2 for v in _centred(x)) / 3 + mpmath.mpf(1e-2)) for z in _centred(x)],
        lambda x: torch.nn.functional.layer_norm(x, (3,), eps=1e-2),
    ),
    "rms_norm": (
        Normalisation(1e-200, 3.0, 3, centred=False),
        lambda x: [3 * v / mpmath.sqrt(sum(v**2 for v in x) / 3 + mpmath.mpf(1e-200)) for v in x],
        lambda x: 3 * torch.nn.functional.rms_norm(x, (3,), eps=1e-200),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_the_rounding_of_an_opaque_map_is_as_stated_at_numbers_of_every_size(name: str) -> None:
    kind, exact, computed = EXACT[name]
    own = kind.rounding(torch.float64)
    assert own is not None
    generator = torch.Generator().manual_seed(0)
    powers = torch.cat([torch.linspace(-322, 160, 120), torch.full((60,), -161.0), torch.linspace(-2, 3, 60)])
    x = torch.randn(240, 3, dtype=torch.float64, generator=generator) * 10.0 ** powers[:, None].double()
    found = computed(x)
    with mpmath.workdps(60):
        for row, answer in zip(x.tolist(), found.tolist(), strict=True):
            true = exact([mpmath.mpf(value) for value in row])
            size = mpmath.sqrt(sum(mpmath.mpf(value) ** 2 for value in row))
            if size > own.reach:
                continue
            error = mpmath.sqrt(sum((one - mpmath.mpf(other)) ** 2 for one, other in zip(true, answer, strict=True)))
            room = kind.bound.upper * size + mpmath.sqrt(sum(value**2 for value in true))
            assert error <= own.relative * room + own.square * size**2 + own.lost * math.sqrt(len(true)), row


@pytest.mark.parametrize("offset", [1.0, 1e3, 1e6])
def test_the_rounding_of_a_normalisation_covers_variances_from_mean_squares(offset: float) -> None:
    x = offset + torch.rand(1, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own = Normalisation(1e-5, 1.0, 18, centred=True).rounding(torch.float64)
    found = torch.nn.functional.group_norm(x.contiguous(memory_format=torch.channels_last), 1)
    with mpmath.workdps(60):
        centred = _centred([mpmath.mpf(value) for value in x.flatten().tolist()])
        length = mpmath.sqrt(sum(z**2 for z in centred) / 18 + mpmath.mpf(1e-5))
        errors = [z / length - value for z, value in zip(centred, found.flatten().tolist(), strict=True)]
        error = float(mpmath.sqrt(sum(one**2 for one in errors)))
    size = float(x.norm())
    assert own is not None
    assert error <= own.relative * size / math.sqrt(1e-5) + own.square * size**2


def test_every_opaque_map_computes_exactly_or_is_compared_with_exact_values() -> None:
    computing = {type(kind) for kind, _, _ in EXACT.values()} | {Stated}
    for kind, _ in OPAQUE:
        assert type(kind) in computing or kind.rounding(torch.float32) == Rounding(0.0, 0.0)


@pytest.mark.parametrize(
    ("piece", "inputs", "shape"),
    [
        (Elementwise(Relu()), [(1, 2)], (3, 2)),
        (Elementwise(Clamp(torch.zeros(3, 1), 1.0)), [(1, 2)], (1, 2)),
        (Elementwise(LeakyRelu(torch.zeros(2, 1, 1))), [(1, 2)], (1, 2)),
        (Merge("sum"), [(3,), (1,)], (3,)),
        (Merge("concatenation", 0), [(3,), (1,)], (5,)),
        (Merge("maximum"), [(3, 1), (3, 2)], (3, 2)),
        (Sort(0, count=2), [(4,)], (4,)),
        (Relu(), [(3,)], (3,)),
    ],
)
def test_a_piece_that_does_not_fit_its_shapes_is_an_error_of_its_rule(piece, inputs, shape) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NotCoveredError, match="does not fit"):
        require_fitting(piece, inputs, shape)
