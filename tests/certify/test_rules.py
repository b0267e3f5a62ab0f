"""Rules: linear maps against the operations they represent, slopes against high precision, refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.certify import certify, lipschitz
from robustres.certify.graph.capture import capture
from robustres.certify.graph.network import Elementwise, Linear, Node, Source
from robustres.certify.graph.operation_rules import build_network
from robustres.certify.graph.rules_pooling import windows
from robustres.certify.graph.simplify import simplified
from robustres.certify.maps.nonlinear import MaxPool
from robustres.certify.maps.smooth import GELU, GELU_TANH, MISH, SILU
from robustres.errors import UnsupportedOperationError
from tests.certify.apply import Apply


def network(function: Callable[[Tensor], Any] | nn.Module, shape: tuple[int, ...]) -> Node:
    """The simplified network of a function."""
    module = function if isinstance(function, nn.Module) else Apply(function)
    found, refused = build_network(capture(module, shape))
    assert found is not None, refused
    return simplified(found)


MIXING = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LINEAR_FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "flatten": (lambda x: x.flatten(1), (2, 3, 4)),
    "permute": (lambda x: x.permute(0, 3, 1, 2), (2, 3, 4)),
    "slice": (lambda x: x[:, :, ::2, 1:], (2, 5, 4)),
    "flip": (lambda x: x.flip(2), (2, 3, 4)),
    "shortcut of type A": (lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)), (2, 4, 4)),
    "reflect pad": (lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"), (2, 4, 4)),
    "replicate pad": (lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"), (2, 4, 4)),
    "circular pad": (lambda x: F.pad(x, (1, 2, 2, 1), mode="circular"), (2, 4, 4)),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), (4, 3, 3)),
    "nearest upsampling": (lambda x: F.interpolate(x, scale_factor=2), (2, 3, 3)),
    "split and cat": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), (4, 3, 3)),
    "expand": (lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4), (2, 4, 4)),
    "mean over the image": (lambda x: x.mean((2, 3)), (3, 4, 5)),
    "sum over channels": (lambda x: x.sum(1), (3, 4, 5)),
    "matmul on the last axis": (lambda x: x @ MIXING.T, (3, 4)),
    "average pool": (lambda x: F.avg_pool2d(x, 3, 2, 1), (2, 7, 7)),
    "average pool, ceil": (lambda x: F.avg_pool2d(x, 2, 2, 0, True, False), (2, 5, 5)),
    "adaptive average pool": (lambda x: F.adaptive_avg_pool2d(x, (2, 3)), (2, 5, 7)),
    "average pool 1d": (lambda x: F.avg_pool1d(x, 2), (2, 6)),
    "average pool 1d, uneven": (lambda x: F.avg_pool1d(x, 3, 2, 1, True, False), (2, 8)),
    "adaptive average pool 1d": (lambda x: F.adaptive_avg_pool1d(x, 3), (2, 7)),
    "normalisation": (lambda x: (x - 0.3) / torch.tensor([0.2, 0.5]).double().reshape(2, 1, 1), (2, 3, 3)),
    "elementwise factors": (lambda x: x * torch.arange(1.0, 7).double().reshape(2, 3), (2, 3)),
    "arithmetic": (lambda x: 3 - 2 * x + x / 4 - torch.add(x, 1, alpha=2) + (-x), (4,)),
    "stack": (lambda x: torch.stack([x, x + 1], dim=1).flatten(1), (3,)),
}


@pytest.mark.parametrize("name", LINEAR_FUNCTIONS)
def test_a_linear_operation_becomes_the_corresponding_map(name: str) -> None:
    function, shape = LINEAR_FUNCTIONS[name]
    output = network(function, shape)
    x = torch.randn(3, *shape, dtype=torch.float64)
    expected = function(x) - function(torch.zeros_like(x))
    values: dict[Node, Tensor] = {}
    for node in output.ordered():
        if isinstance(node.piece, Source):
            values[node] = x
        elif isinstance(node.piece, Linear):
            values[node] = node.piece.map(values[node.inputs[0]])
    torch.testing.assert_close(values[output], expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=5)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
)
def test_a_convolution_becomes_the_corresponding_map(
    kernel: int, stride: int, dilation: int, groups: int, mode: str
) -> None:
    layer = nn.Conv2d(2, 4, kernel, stride, 1, dilation, groups, padding_mode=mode)
    norm = nn.BatchNorm2d(4).eval()
    norm.running_var.uniform_(0.5, 2)
    model = nn.Sequential(layer, norm).eval()
    output = network(model, (2, 6, 5))
    assert isinstance(output.piece, Linear)
    assert len(output.ordered()) == 2  # padding and batch normalisation are folded in
    exact = model.double()
    x = torch.randn(3, 2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(output.piece.map(x), (exact(x) - exact(torch.zeros_like(x))).detach())


ACTIVATIONS: dict[str, nn.Module] = {
    type(module).__name__ + str(number): module
    for number, module in enumerate(
        [
            *(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.LeakyReLU(1.5), nn.Hardtanh(-2, 1), nn.Tanh(), nn.Sigmoid()),
            *(
                nn.SiLU(),
                nn.GELU(),
                nn.GELU("tanh"),
                nn.Softplus(2.0),
                nn.ELU(0.7),
                nn.ELU(1.8),
                nn.SELU(),
                nn.CELU(0.5),
            ),
            *(nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.PReLU(init=-0.4), nn.LogSigmoid()),
            *(Apply(torch.abs), Apply(torch.sin), Apply(lambda x: x.clamp(max=0.5)), Apply(lambda x: x.clamp_min(0.1))),
            *(Apply(torch.atan), Apply(lambda x: torch.maximum(x, torch.ones(4, dtype=x.dtype)))),
        ]
    )
}


BIASED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "convolution": (nn.Conv2d(2, 3, 3), (2, 5, 4)),
    "signal": (nn.Conv1d(2, 3, 3), (2, 5)),
    "dense": (nn.Linear(4, 3), (2, 4)),
    "sum": (Apply(lambda x: 3 - 2 * (x + torch.arange(4.0).double())), (2, 4)),
    "sum of a batch": (Apply(lambda x: x + torch.arange(4.0).double().expand(len(x), 2, 4)), (2, 4)),
    "normalisation": (nn.BatchNorm2d(2), (2, 3, 4)),
}


@pytest.mark.parametrize("name", BIASED)
def test_the_constants_that_an_operation_adds_are_charged(name: str) -> None:
    module, shape = BIASED[name]
    module = module.double().eval()
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean.copy_(torch.tensor([0.5, -2.0]))  # type: ignore[union-attr]
    found, refused = build_network(capture(module, shape))
    assert found is not None, refused
    with torch.no_grad():
        added = module(torch.zeros(3, *shape, dtype=torch.float64))[0]
    pieces = [node.piece for node in found.ordered() if isinstance(node.piece, Linear)]
    close = 3 if name == "sum" else 1 + 1e-9  # parts of a sum are charged one by one
    assert float(added.norm()) <= sum(piece.shift for piece in pieces) <= close * float(added.norm())
    assert float(added.abs().max()) <= sum(piece.largest for piece in pieces) <= close * float(added.abs().max())


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("divisor", [None, 5])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0), (4, 3, 2)])
def test_average_pooling_becomes_the_map_that_torch_computes(
    kernel: int, stride: int, pad: int, include: bool, ceil_mode: bool, divisor: int | None
) -> None:
    def pooled(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, kernel, stride, pad, ceil_mode, include, divisor)

    piece = network(pooled, (3, 8, 7)).piece
    assert isinstance(piece, Linear)
    x = torch.randn(2, 3, 8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(piece.map(x), pooled(x), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_slopes_of_an_activation_contain_every_difference_quotient_and_are_attained(name: str) -> None:
    module = ACTIVATIONS[name]
    output = network(module, (4,))
    assert isinstance(output.piece, Elementwise)
    low, high = output.piece.slopes
    grid = torch.linspace(-12, 12, 480_001, dtype=torch.float64).reshape(-1, 1).expand(-1, 4)
    with torch.no_grad():
        values = module.double()(grid)[:, 0]
    step = float(grid[1, 0] - grid[0, 0])
    quotients = values.diff() / step
    assert float(quotients.max()) <= high + 1e-9
    assert float(quotients.min()) >= low - 1e-9
    assert float(quotients.abs().max()) >= output.piece.constant - 1e-3


def test_the_extreme_slopes_are_roots_of_the_second_derivative_rounded_outwards() -> None:
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(40):
        functions = {
            GELU: lambda x: x * mpmath.ncdf(x),
            GELU_TANH: lambda x: x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + 0.044715 * x**3))),
            SILU: lambda x: x / (1 + mpmath.exp(-x)),
            MISH: lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
        }
        starts = {GELU: 1.41, GELU_TANH: 1.42, SILU: 2.4, MISH: 1.49}
        for (low, high), function in functions.items():
            steepest = mpmath.findroot(lambda x, f=function: mpmath.diff(f, x, 2), starts[low, high])
            lowest = mpmath.findroot(
                lambda x, f=function: mpmath.diff(f, x, 2), -2.25 if (low, high) == MISH else -starts[low, high]
            )
            assert 0 <= mpmath.mpf(high) - mpmath.diff(function, steepest) < 1e-14
            assert 0 <= mpmath.diff(function, lowest) - mpmath.mpf(low) < 1e-14


@settings(deadline=None, max_examples=30)
@given(
    side=st.integers(3, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 4),
    seed=st.integers(0, 100),
)
def test_overlapping_max_pooling_is_never_taken_as_nonexpansive(side: int, kernel: int, stride: int, seed: int) -> None:
    pad = kernel // 2
    generator = torch.Generator().manual_seed(seed)
    count = F.max_pool2d(torch.zeros(1, 1, side, side), kernel, stride, pad).shape[2]
    overlap = round(MaxPool((windows(side, count, kernel, stride, pad, 1),)).bound.upper ** 2)
    spike = torch.zeros(side * side, 1, side, side, dtype=torch.float64)
    spike.reshape(side * side, -1).fill_diagonal_(1)
    attained = F.max_pool2d(spike, kernel, stride, pad).flatten(1).norm(dim=1).max()
    assert float(attained) == pytest.approx(overlap)  # sqrt(overlap^2), attained by one pixel
    x, y = torch.randn(2, 8, 1, side, side, dtype=torch.float64, generator=generator)
    change = F.max_pool2d(x, kernel, stride, pad) - F.max_pool2d(y, kernel, stride, pad)
    assert bool((change.flatten(1).norm(dim=1) <= overlap * (x - y).flatten(1).norm(dim=1) + 1e-12).all())


def test_max_pooling_as_in_resnet_has_the_constant_two() -> None:
    report = lipschitz(nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten()), (2, 8, 8))
    assert report.upper == pytest.approx(2)
    assert lipschitz(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), (2, 8, 8)).upper == 1


def maxmin(x: Tensor) -> Tensor:
    """Sort channel c with channel c + C/2."""
    left, right = x.chunk(2, 1)
    return torch.cat([torch.maximum(left, right), torch.minimum(left, right)], 1)


def groupsort(x: Tensor) -> Tensor:
    """Sort neighbouring channels."""
    return x.reshape(len(x), -1, 2, *x.shape[2:]).sort(2).values.reshape(x.shape)


@pytest.mark.parametrize("function", [maxmin, groupsort])
def test_sorting_in_groups_is_nonexpansive(function: Callable[[Tensor], Tensor]) -> None:
    assert lipschitz(Apply(function), (4, 3, 3), lower_steps=0).upper == pytest.approx(1, rel=1e-12)


def test_the_elementwise_maximum_of_two_maps_adds_their_squared_constants() -> None:
    report = lipschitz(Apply(lambda x: torch.maximum(2 * x, -1.5 * x)), (3,), lower_steps=0)
    assert report.upper == pytest.approx(2.5)


def test_a_constant_concatenated_with_a_value_adds_nothing() -> None:
    report = lipschitz(Apply(lambda x: torch.cat([2 * x, torch.ones(len(x), 1, dtype=x.dtype)], 1)), (3,))
    assert report.upper == pytest.approx(2)


def test_a_concatenation_of_branches_adds_their_squared_constants() -> None:
    report = lipschitz(Apply(lambda x: torch.cat([3 * x.relu(), 4 * x.tanh()], 1)), (3,), lower_steps=0)
    assert report.upper == pytest.approx(5)
    assert report.blocks[0].kind == "concatenation"


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: x * x, "mul"),
        (lambda x: x / (1 - x.abs()), "div"),
        (lambda x: x.exp(), "exp"),
        (lambda x: x.pow(2), "pow"),
        (lambda x: x.round(), "round"),
        (lambda x: x.float(), "float32, which rounds"),
        (lambda x: F.layer_norm(x, (4,), eps=0.0), "layer_norm"),
        (lambda x: F.softplus(x, threshold=3), "jumps by"),
        (lambda x: x.unflatten(1, (2, 2)).sum(2, dtype=torch.float16), "float16, which rounds"),
        (lambda x: x.softmax(1, dtype=torch.float32), "float32, which rounds"),
        (lambda x: x.cumsum(1, dtype=torch.bfloat16), "bfloat16, which rounds"),
        (lambda x: F.dropout(x, training=True), "random numbers"),
        (lambda x: F.normalize(x, eps=0.0), "by a value that depends on the input"),
        (lambda x: F.threshold(x, 0.5, 3.0), "threshold"),
        (lambda x: F.hardshrink(x), "which jumps"),
        (lambda x: x.argsort(1).double(), "sort"),
        (lambda x: x.cumprod(1), "cumprod"),
        (lambda x: x * torch.tensor(torch.inf), "mul"),
    ],
)
def test_operations_without_a_global_bound_or_a_rule_are_refused_by_name(
    function: Callable[[Tensor], Tensor], operation: str
) -> None:
    report = lipschitz(Apply(function), (4,), refuse="record")
    assert any(operation in refusal.operation for refusal in report.refused), report.refused


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_a_logarithmic_softmax_has_the_constant_that_is_approached(classes: int) -> None:
    x = torch.zeros(1, classes, dtype=torch.float64)
    x[0, 0] = 40.0
    jacobian = torch.autograd.functional.jacobian(lambda v: F.log_softmax(v, 1), x).reshape(classes, classes)
    softmax = Apply(lambda v: F.log_softmax(v, 1))
    attained = {"l2": torch.linalg.matrix_norm(jacobian, 2), "linf": jacobian.abs().sum(1).max()}
    for norm, value in attained.items():
        upper = lipschitz(softmax, (classes,), norm=norm).upper  # type: ignore[arg-type]
        assert float(value) <= upper + 1e-12 <= float(value) * (1 + 1e-9) + 2e-12


def test_a_network_that_ends_in_a_logarithmic_softmax_has_the_radii_of_its_logits() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    images = torch.rand(5, 4)
    softmax = nn.LogSoftmax(1)
    for norm in ("l2", "linf"):
        plain, found = (certify(model, images, norm=norm).radius for model in (body, nn.Sequential(body, softmax)))  # type: ignore[arg-type]
        torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-12)
        assert float(found.max()) > 0


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.LayerNorm(3, eps=0.0), "layer_norm with eps of 0"),
        (nn.Softplus(threshold=1), "softplus with threshold 1, where its value jumps by 0.313"),
        (nn.MaxPool2d((1, 2), 1, (0, 1), 2), "max_pool2d with a window that contains no pixel"),
    ],
)
def test_a_refusal_says_why_and_what_to_do(layer: nn.Module, words: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=f"{words}.* at 0; replace the operation, or let the module"):
        lipschitz(nn.Sequential(layer, nn.Flatten()), (4, 3, 1 if isinstance(layer, nn.MaxPool2d) else 3))


@pytest.mark.skipif(torch.__version__ < "2.9", reason="before torch 2.9 it is refused without the operation's place")
def test_everything_after_an_operation_that_moves_the_batch_is_checked_too() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.attention(x, x, x)[0]

    report = lipschitz(Attention(), (4, 4), refuse="record")
    listed = " ".join(map(str, report.refused))
    assert "attention is such a product" in listed
    assert {refusal.path for refusal in report.refused} == {"attention"}


def test_results_that_nobody_reads_do_not_count_as_a_moved_batch() -> None:
    """Batch normalisation and pooling after an in-place change give empty tensors or places beside their result."""
    parts = (
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    assert not capture(nn.Sequential(*parts).eval(), (2, 6, 6)).moves_batch


def test_complex_numbers_are_refused_for_what_they_are() -> None:
    _, refused = build_network(capture(Apply(lambda x: (x * 1j).abs()), (4,)))
    assert any("complex numbers" in refusal.operation for refusal in refused), refused


@pytest.mark.parametrize("include", [False, True])
def test_average_pooling_over_windows_larger_than_the_image(include: bool) -> None:
    pooled = lambda x: F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=include)  # noqa: E731
    x = torch.zeros(1, 2, 3, 1, dtype=torch.float64)
    exact = torch.autograd.functional.jacobian(pooled, x).reshape(-1, 6)
    output = network(pooled, (2, 3, 1))
    assert isinstance(output.piece, Linear)
    torch.testing.assert_close(output.piece.map.dense(), exact)
