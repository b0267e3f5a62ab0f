"""Local certificates of a network as it runs in float32 cover its rounding, whatever the order of its sums."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import LocalCertificate, certify
from robustres.certify.local import intermediate
from robustres.certify.local.backward import Form
from robustres.certify.local.intermediate import bounded
from robustres.certify.local.local_radii import local_program, local_radii
from robustres.certify.local.margins import margin_rows
from robustres.certify.local.proof import Question
from robustres.certify.local.sets import Region
from robustres.certify.maps.activation import Activation
from robustres.certify.maps.piecewise_linear import Hardsigmoid
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
from robustres.errors import PrecisionError
from robustres.threat import Norm

SHAPE = (3, 6, 6)
F = nn.functional


class Spread(nn.Module):
    """An operation that is known by its definition only."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.logaddexp2(x, 2 * x)


class Cancelling(nn.Module):
    """Normalisation of the input, a residual block with batch normalisation of large means, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.outer = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4 * 3 * 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem((x - 0.4) / 0.3)))
        x = x + self.outer(nn.functional.leaky_relu(self.inner(x), 0.1))
        answer: Tensor = self.head(nn.functional.max_pool2d(x, 2).flatten(1))
        return answer


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = Cancelling()
    with torch.no_grad():
        model.stem.bias.fill_(50.0)
        assert model.norm.running_mean is not None
        model.norm.running_mean.fill_(50.0)
    return model.eval()


def linear_form(model: nn.Module, image: Tensor, eps: float) -> tuple[Form, Tensor]:
    """The margins of the predicted class as charged linear functions on a ball, and their rows."""
    made = local_program(model, SHAPE, runs=torch.float32)
    rows, _ = margin_rows(made.values(image[None].double())[-1].argmax(dim=1), 4, torch.float64)
    region = Region.ball(image[None].double(), eps, "linf")
    question = Question(region, rows, torch.zeros(3, dtype=torch.float64))
    return question.form(made, bounded(made, region)), rows


def below(form: Form, rows: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    """(N, 3) by how much the computed margins of images in float32 exceed the charged linear functions."""
    with torch.no_grad():
        margins = model(images).double() @ rows.T
    return margins - (images.double().flatten(1) @ form.weights.flatten(1).T + form.constant - form.charge)


def test_computed_margins_stay_above_the_charged_lines(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """For several sizes of batches and both layouts; without the charge, rounding crosses the lines."""
    torch.manual_seed(1)
    image, eps = torch.rand(SHAPE), 1e-5
    images = (image + eps * (2 * torch.rand(64, *SHAPE) - 1)).clamp(0, 1)
    form, rows = linear_form(network, image, eps)
    for batch in (images, images[:1], images[:7], images.contiguous(memory_format=torch.channels_last)):
        assert float(below(form, rows, network, batch).min()) >= 0
    monkeypatch.setattr(intermediate, "introduced", lambda *_: None)
    form, rows = linear_form(network, image, eps)
    assert float(below(form, rows, network, images).min()) < 0


@pytest.mark.parametrize("length", [64, 1000, 5000])
def test_sums_that_lose_every_small_term_stay_within_the_bounds(length: int) -> None:
    """Sixty-four ones and terms of half a unit in their last place, which no accumulator that holds a one can see."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64 + length, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[1].weight.fill_(2.0**-25)
        model[1].weight[:, :64] = 1.0
    x = torch.ones(1, 1, 1, 64 + length)
    made = local_program(model, tuple(x.shape[1:]), runs=torch.float32)
    bounds = bounded(made, Region.ball(x.double(), 0.0, "linf"))
    with torch.no_grad():
        low, high = bounds.lower[-1][0], bounds.upper[-1][0]
        for computed in (
            model(x)[0].double(),
            torch.full((2,), 64.0, dtype=torch.float64),
            made.values(x.double())[-1][0],
        ):
            assert bool(((low <= computed) & (computed <= high)).all())


class Sums(nn.Module):
    """A sum whose later terms are half a unit in the last place of the first: no partial sum can see them."""

    def forward(self, x: Tensor) -> Tensor:
        first, *others = x.flatten(1).split(2, dim=1)
        return sum(others, first)


def test_sums_of_steps_lose_every_small_term_within_the_bounds_and_the_charge() -> None:
    """In float32, 1 + 2^-25 + 2^-25 + 2^-25 is 1 from left to right and 1 + 2^-23 from right to left."""
    x = torch.full((1, 1, 4, 2), 2.0**-25)
    x[:, :, 0] = 1.0
    made = local_program(Sums(), (1, 4, 2), runs=torch.float32)
    region = Region.ball(x.double(), 0.0, "linf")
    bounds = bounded(made, region)
    question = Question(region, torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    assert bool((Sums()(x) == 1).all())
    for value in (1.0, 1 + 3 * 2.0**-25, 1 + 2.0**-23):
        assert bool(((bounds.lower[-1] <= value) & (value <= bounds.upper[-1])).all())
    below = question.form(made, bounds).minimum(region)
    assert bool(((below >= 1 - 2.0**-20) & (below <= 1)).all())


def test_a_margin_below_the_rounding_proves_nothing_in_float32() -> None:
    """The logits 1000 + x and 1000 + y differ by 1e-5 at the image, which float32 cannot see."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))
        model[1].bias.fill_(1000.0)
    x = torch.tensor([[[[0.5, 0.5 - 1e-5]]]])
    assert model(x).diff().item() == 0
    assert certify(model, x, norm="linf", certificate="local").radius.item() > 4e-6
    assert certify(model, x, norm="linf", certificate="local", dtype=torch.float32).radius.item() == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_radii_in_float32_withstand_random_changes(network: nn.Module, norm: Norm) -> None:
    torch.manual_seed(2)
    x = torch.rand(1, *SHAPE)
    made = local_program(network, SHAPE, runs=torch.float32)
    (found,) = local_radii(made, x, norm=norm, seconds=0.3)
    assert found.radius > 0
    if norm == "linf":
        near = (x + found.radius * torch.randn(200, *SHAPE).sign()).clamp(0, 1)
        near = torch.minimum(torch.maximum(near, x - found.radius), x + found.radius)
        assert bool((network(near).argmax(dim=1) == found.prediction).all())


SMOOTH: list[tuple[Callable[[Tensor], Tensor], Activation]] = [
    (torch.sigmoid, Sigmoid()),
    (torch.tanh, Tanh()),
    (torch.erf, Erf()),
    (torch.atan, Atan()),
    (torch.sin, Sin()),
    (torch.cos, Cos()),
    (F.logsigmoid, LogSigmoid()),
    (F.gelu, Gelu()),
    (partial(F.gelu, approximate="tanh"), Gelu("tanh")),
    (F.silu, Silu()),
    (F.mish, Mish()),
    (F.softplus, Softplus(1.0, 20.0)),
    (F.elu, Elu(1.0)),
    (F.hardswish, Hardswish()),
    (F.hardsigmoid, Hardsigmoid()),
]


@pytest.mark.parametrize(("computed", "kind"), SMOOTH, ids=lambda one: type(one).__name__)
def test_elementary_functions_in_float32_are_far_more_accurate_than_assumed(
    computed: Callable[[Tensor], Tensor], kind: Activation
) -> None:
    """At numbers of every size up to 100; a single number may take another path than a whole vector."""
    generator = torch.Generator().manual_seed(0)
    sizes = 2.0 ** (130 * torch.rand(20000, generator=generator, dtype=torch.float64) - 123.4)
    x = torch.cat([sizes, -sizes, torch.linspace(-30, 30, 40001, dtype=torch.float64)]).float()
    exact = kind(x.double())
    room = kind.constant * x.double().abs() + exact.abs()
    allowed = 16 * 2.0**-24 * room + kind.jump + 1e-37
    assert bool(((computed(x).double() - exact).abs() <= allowed).all())
    alone = torch.cat([computed(part) for part in x[::400].split(1)])
    assert bool(((alone.double() - exact[::400]).abs() <= allowed[::400]).all())
    own = kind.rounding(torch.float32)
    assert own is not None
    assert own.relative >= 64 * 2.0**-24


def test_what_has_no_bound_in_float32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        known = Sigmoid().rounding(torch.float64)
        patched.setattr(Sigmoid, "rounding", lambda _, dtype: None if dtype == torch.float32 else known)
        smooth = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2))
        with pytest.raises(PrecisionError, match="no bound is known on the rounding of Sigmoid"):
            LocalCertificate(dtype=torch.float32)(smooth, torch.rand(1, 1, 2, 2))
    spread = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), Spread())
    with pytest.raises(PrecisionError, match="logaddexp2"):
        LocalCertificate(dtype=torch.float32)(spread, torch.rand(1, 1, 2, 2))
    resized = nn.Sequential(nn.Upsample(size=(3, 3), mode="bilinear"), nn.Flatten(), nn.Linear(9, 2))
    with pytest.raises(PrecisionError, match=r"upsample_bilinear2d.*computes in float32"):
        LocalCertificate(dtype=torch.float32)(resized, torch.rand(1, 1, 2, 2))
    double = nn.Sequential(nn.Flatten(), nn.Linear(4, 2).double())
    with torch.no_grad():
        double[1].bias.fill_(0.1)
    with pytest.raises(PrecisionError, match="weights that float32 would round"):
        LocalCertificate(dtype=torch.float32)(double, torch.rand(1, 1, 2, 2))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with pytest.raises(PrecisionError, match="highest"):
            LocalCertificate(dtype=torch.float32)(double.float(), torch.rand(1, 1, 2, 2))
    finally:
        torch.set_float32_matmul_precision(before)
    if (convolution := getattr(torch.backends.mkldnn, "conv", None)) is not None:
        try:
            convolution.fp32_precision = "bf16"
            with pytest.raises(PrecisionError, match="bf16"):
                LocalCertificate(dtype=torch.float32)(double, torch.rand(1, 1, 2, 2))
        finally:
            convolution.fp32_precision = "none"
