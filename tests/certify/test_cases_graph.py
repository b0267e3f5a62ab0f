"""Typical user code: its bounds against dense Jacobians, and all cases in which no bound is given."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.transforms import functional as TF  # noqa: N812
from torchvision.transforms import v2

from robustres.certify import audit, certify, lipschitz
from robustres.certify.bounds.bounded_network import Analysis
from robustres.certify.lower.ascent import Search
from robustres.certify.proof.bound import Guarantee
from robustres.errors import DefectiveBoundError, InputError, ModelError, UnsupportedOperationError


class Apply(nn.Module):
    """A function of the input and of a few constants as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.function = function
        self.weight = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.square = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.plain = torch.tensor([0.2471, 0.7, -0.3, 1.3])  # neither a parameter nor a buffer, so it stays in float32
        self.layer = nn.Conv2d(1, 2, 1)
        nn.init.constant_(self.layer.weight, 0.5)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def bound(function: Callable[..., Any], shape: tuple[int, ...] = (4,), **settings: Any) -> float:
    return lipschitz(Apply(function), shape, lower_steps=0, **settings).upper


def attained(
    function: Callable[..., Any], shape: tuple[int, ...] = (4,), points: int = 24, scale: float = 1.0
) -> float:
    """The largest Jacobian norm at random points, near 0 and away from it, in float64."""
    model = Apply(function).double()
    generator = torch.Generator().manual_seed(1)
    largest = 0.0
    for k in range(points):
        x = torch.randn(1, *shape, dtype=torch.float64, generator=generator) * scale * (10.0 ** -(k % 4))
        jacobian = torch.autograd.functional.jacobian(lambda z: model(z).flatten(), x).flatten(1)
        largest = max(largest, float(torch.linalg.matrix_norm(jacobian, 2)))
    return largest


LINEAR: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "x.to(x.device)": (lambda m, x: 2 * x.to(x.device), (4,)),
    "x.to(weight.dtype)": (lambda m, x: F.linear(x.to(m.weight.dtype), m.weight), (4,)),
    "type_as": (lambda m, x: F.linear(x.type_as(m.weight), m.weight), (4,)),
    "einsum with a weight": (lambda m, x: torch.einsum("nc,dc->nd", x, m.weight), (4,)),
    "einsum, weight first": (lambda m, x: torch.einsum("dc,nchw->ndhw", m.weight, x).flatten(1), (4, 2, 3)),
    "einsum over two letters": (lambda m, x: torch.einsum("ncd,cd->n", x, m.square)[:, None], (4, 4)),
    "einsum that keeps a letter": (lambda m, x: torch.einsum("ncd,ce->nced", x, m.square).flatten(1), (4, 2)),
    "einsum, outer": (lambda m, x: torch.einsum("nc,d->ncd", x, m.plain.to(x)).flatten(1), (4,)),
    "einsum with two constants": (lambda m, x: torch.einsum("nc,dc,c->nd", x, m.weight, m.plain.to(x)), (4,)),
    "einsum that sums a constant": (lambda m, x: torch.einsum("nc,cd->nc", x, m.square), (4,)),
    "affine grid": (lambda m, x: _rotated(x, m.square[None, :2, :3].to(x)).flatten(1), (2, 3, 3)),
    "diag_embed": (lambda m, x: torch.diag_embed(x).flatten(1) @ torch.ones(16, 2).to(x), (4,)),
    "power of 0": (lambda m, x: x**0 + 3 * x**1, (4,)),
    "nan_to_num": (lambda m, x: torch.nan_to_num(2 * x), (4,)),
    "multi_dot": (lambda m, x: torch.linalg.multi_dot([x, m.square, m.square]), (4,)),
    "bilinear with a constant": (
        lambda m, x: F.bilinear(x, m.plain.to(x).expand(len(x), -1), m.square.reshape(1, 4, 4)),
        (4,),
    ),
    "W @ x.T": (lambda m, x: (m.weight @ x.T).T, (4,)),
    "W @ x.T with as many features as samples": (lambda m, x: (m.square[:3, :3] @ x.T).T, (3,)),
    "matmul from the left": (lambda m, x: (m.weight @ x).flatten(1), (4, 3)),
    "bmm": (lambda m, x: torch.bmm(x, m.square.expand(len(x), -1, -1)).flatten(1), (3, 4)),
    "a weight for each group": (
        lambda m, x: (x[:, :, None] @ m.square.reshape(4, 1, 2, 2)[None, :, 0]).flatten(1),
        (4, 2),
    ),
    "matrix times vector": (lambda m, x: torch.stack([x @ m.plain.to(x), x @ m.weight[0]], 1), (4,)),
    "addmm": (lambda m, x: torch.addmm(m.weight[:, 0], x, m.weight.T, beta=2, alpha=-0.5), (4,)),
    "tensordot": (lambda m, x: torch.tensordot(x, m.weight, dims=([1], [1])), (4,)),
    "list index": (lambda m, x: x[:, [1, 0, -1, 1]], (4,)),
    "tensor index": (lambda m, x: x[:, torch.tensor([[0, 1], [1, 0]])].flatten(1), (4,)),
    "index_select": (lambda m, x: x.index_select(1, torch.tensor([3, 3, 0])), (4,)),
    "gather": (lambda m, x: x.gather(1, torch.tensor([[1, 1, 0]]).expand(len(x), -1)), (4,)),
    "lerp": (lambda m, x: torch.lerp(x, x.flip(1), 0.3), (4,)),
    "lerp by a tensor": (lambda m, x: torch.lerp(x, x.flip(1), m.plain.to(x)), (4,)),
    "lerp to a constant": (lambda m, x: x.lerp(m.plain.to(x), 0.25), (4,)),
    "addcmul": (lambda m, x: torch.addcmul(x, x.flip(1), m.plain.to(x), value=2), (4,)),
    "addcdiv": (lambda m, x: torch.addcdiv(m.plain.to(x), x, m.plain.to(x), value=0.5), (4,)),
    "division by a plain tensor": (lambda m, x: x / m.plain, (4,)),
    "reciprocal of a plain tensor": (lambda m, x: x * m.plain.to(x).reciprocal(), (4,)),
    "cat with zeros": (lambda m, x: torch.cat([torch.zeros_like(x), 2 * x, torch.ones_like(x[:, :1])], 1), (4,)),
    "cumsum": (lambda m, x: x.cumsum(1), (4,)),
    "cumsum of rows": (lambda m, x: x.cumsum(-2).flatten(1), (3, 2)),
    "slices written in place": (lambda m, x: _overwritten(3 * x), (4,)),
    "masked_fill": (lambda m, x: 2 * x.masked_fill(torch.tensor([True, False, False, True]), 5.0), (4,)),
    "where by a constant": (lambda m, x: torch.where(torch.tensor([True, False, False, True]), 2 * x, -x), (4,)),
    "unbind and stack": (lambda m, x: torch.stack(x.unbind(1)[::-1], 1), (4,)),
    "one number per sample": (lambda m, x: torch.stack([x[:, 0], x[:, 1] - x[:, 2]], 1), (4,)),
    "minus the mean": (lambda m, x: x - x.mean(1)[:, None], (4,)),
    "a mean used twice": (lambda m, x: (lambda h: torch.stack([h, 2 * h], 1))(x.mean(1)), (4,)),
    "squeeze": (lambda m, x: torch.stack([x[:, :1].squeeze(1), x[:, 1:2].squeeze(1)], 1), (4,)),
    "empty slice": (
        lambda m, x: torch.cat([x.reshape(-1, 1, 4)[:, ::2], x.reshape(-1, 1, 4)[:, 1::2]], 1).flatten(1),
        (4,),
    ),
    "broadcasting sum": (lambda m, x: (x[:, :, None] + x[:, None, :]).flatten(1), (4,)),
    "triu": (lambda m, x: x.triu().flatten(1), (3, 3)),
    "bilinear": (lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear").flatten(1), (1, 3, 4)),
    "bilinear, corners": (
        lambda m, x: F.interpolate(x, (5, 2), mode="bilinear", align_corners=True).flatten(1),
        (1, 3, 4),
    ),
    "bicubic": (lambda m, x: F.interpolate(x, (5, 7), mode="bicubic").flatten(1), (1, 3, 4)),
    "antialiased": (lambda m, x: F.interpolate(x, (2, 2), mode="bilinear", antialias=True).flatten(1), (1, 5, 4)),
    "linear": (lambda m, x: F.interpolate(x, scale_factor=2, mode="linear").flatten(1), (2, 4)),
    "trilinear": (lambda m, x: F.interpolate(x, scale_factor=2, mode="trilinear").flatten(1), (1, 2, 2, 3)),
    "nearest-exact": (lambda m, x: F.interpolate(x, (5, 2), mode="nearest-exact").flatten(1), (1, 3, 4)),
    "conv3d": (lambda m, x: F.conv3d(x, m.square.reshape(2, 1, 2, 2, 2), padding=1).flatten(1), (1, 2, 3, 2)),
    "conv_transpose1d": (
        lambda m, x: F.conv_transpose1d(x, m.square[:2, :2, None].expand(-1, -1, 3), stride=2).flatten(1),
        (2, 3),
    ),
    "conv_transpose3d": (lambda m, x: F.conv_transpose3d(x, m.square.reshape(1, 2, 2, 2, 2)).flatten(1), (1, 2, 2, 2)),
    "output padding below the dilation": (
        lambda m, x: F.conv_transpose2d(
            x, m.square[None, None], stride=(1, 2), output_padding=(1, 0), dilation=(2, 1)
        ).flatten(1),
        (1, 3, 3),
    ),
    "average pooling 3d": (lambda m, x: F.avg_pool3d(x, 2, 1).flatten(1), (1, 3, 2, 2)),
    "adaptive average pooling 3d": (lambda m, x: F.adaptive_avg_pool3d(x, (2, 1, 2)).flatten(1), (1, 3, 2, 3)),
    "Normalize": (lambda m, x: torchvision.transforms.Normalize([0.4] * 3, [0.2, 0.2, 0.25])(x).flatten(1), (3, 2, 2)),
    "Normalize v2": (lambda m, x: v2.Normalize([0.4] * 3, [0.2, 0.2, 0.25])(x).flatten(1), (3, 2, 2)),
    "normalize": (lambda m, x: TF.normalize(x, [0.4] * 3, [0.2, 0.2, 0.25]).flatten(1), (3, 2, 2)),
    "batch normalisation by functions": (
        lambda m, x: F.batch_norm(x, m.plain[:2].double(), m.plain[2:].abs().double()),
        (2,),
    ),
    "diff": (lambda m, x: torch.diff(x, n=2, prepend=1e20 * torch.ones_like(x)), (4,)),
    "kron": (lambda m, x: torch.kron(x, m.square[:1].to(x)), (4,)),
    "index_add": (lambda m, x: torch.index_add(x, 1, torch.tensor([0, 0, 2]), x[:, 1:], alpha=3.0), (4,)),
    "index_add to constants": (
        lambda m, x: torch.full((len(x), 3), 1e20).to(x).index_add(1, torch.tensor([0, 0, 2, 1]), x),
        (4,),
    ),
    "scatter_reduce": (
        lambda m, x: x[:, :3].scatter_reduce(1, torch.tensor([[0, 0, 2, 1]]).expand(len(x), -1), 2 * x, "mean"),
        (4,),
    ),
    "scatter_add": (
        lambda m, x: torch.zeros(len(x), 3).to(x).scatter_add(1, torch.tensor([[0, 0, 2, 1]]).expand(len(x), -1), x),
        (4,),
    ),
    "index_put that adds": (
        lambda m, x: torch.ops.aten.index_put(x, [None, torch.tensor([0, 0, 1])], x[:, 1:], True),
        (4,),
    ),
}


def _rotated(x: Tensor, map_: Tensor) -> Tensor:
    grid = F.affine_grid(map_.expand(len(x), -1, -1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _overwritten(x: Tensor) -> Tensor:
    x[:, 1] = 5 * x[:, 0]
    return x


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_idiom_has_the_norm_of_its_matrix(name: str) -> None:
    function, shape = LINEAR[name]
    truth = attained(function, shape, points=1)
    found = bound(function, shape)
    assert truth * (1 - 1e-14) <= found <= max(truth * 1.2, truth + 1e-9), (truth, found)


def test_a_constant_in_float32_is_divided_by_in_float64() -> None:
    model = Apply(lambda m, x: x / m.plain[:1])
    assert lipschitz(model, (1,), lower_steps=0).upper >= 1 / float(model.plain[0])


NONLINEAR: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "clamp that broadcasts": (lambda m, x: torch.clamp(x, min=m.square[:, 0].view(1, 4, 1)).flatten(1), (1, 2)),
    "clip that broadcasts": (lambda m, x: torch.clip(x, m.square[:, :1] - 2, m.square[:, :1] + 2).flatten(1), (1, 1)),
    "clamp_max that broadcasts": (lambda m, x: x.clamp_max(m.plain.to(x)), (1,)),
    "maximum that broadcasts": (lambda m, x: torch.maximum(x, -9 + m.plain.to(x)), (1,)),
    "fmin of two values that broadcast": (lambda m, x: torch.fmin(x[:, :1] + 1, x), (4,)),
    "prelu": (lambda m, x: F.prelu(x, -3 * m.plain.to(x)), (4, 2)),
    "max of each sample": (lambda m, x: x - x.max(1).values[:, None], (4,)),
    "topk": (lambda m, x: x.topk(2, largest=False).values, (4,)),
    "adaptive max pooling with overlap": (lambda m, x: F.adaptive_max_pool2d(x, 2).flatten(1), (1, 3, 3)),
    "max pooling 3d": (lambda m, x: F.max_pool3d(x, 2, 1).flatten(1), (1, 3, 2, 2)),
    "rrelu": (lambda m, x: F.rrelu(x, 0.1, 0.7), (4,)),
    "softshrink module": (lambda m, x: torch.nn.functional.celu(x, 0.3) - 0.1 * x, (4,)),
    "layer normalisation": (lambda m, x: F.layer_norm(x, (4,), m.plain.to(x), m.weight[0], eps=1e-2), (4,)),
    "group normalisation": (lambda m, x: F.group_norm(x, 2, m.plain.to(x), eps=1e-2).flatten(1), (4, 2)),
    "instance normalisation": (lambda m, x: F.instance_norm(x, eps=1e-2).flatten(1), (2, 3)),
    "median": (lambda m, x: x.median(1).values, (3, 4)),
    "kthvalue": (lambda m, x: 2 * x.kthvalue(2, -1, keepdim=True).values.flatten(1), (3, 4)),
    "aminmax": (lambda m, x: torch.stack(torch.aminmax(x, dim=1), 1), (4,)),
    "length": (lambda m, x: torch.cat([x.norm(dim=1), x.norm(1, 2), x.norm(math.inf, 2)], 1), (3, 4)),
    "logaddexp": (lambda m, x: torch.logaddexp(x, x.flip(1)), (4,)),
    "standard deviation": (lambda m, x: torch.stack([x.std(1), x.std(1, correction=0), x.mean(1)], 1), (4,)),
    "distances to points": (lambda m, x: torch.cdist(x, m.weight.to(x)), (4,)),
    "distances, order 1": (lambda m, x: torch.cdist(x, m.weight.to(x), p=1), (4,)),
    "quantile": (lambda m, x: 2 * x.quantile(0.3, dim=1, keepdim=True), (4,)),
    "running maximum": (lambda m, x: torch.cummax(x, 1).values, (4,)),
    "size with signs": (lambda m, x: torch.copysign(x, m.plain.to(x)), (4,)),
    "hypot with a constant": (lambda m, x: torch.hypot(x, m.plain.to(x)), (4,)),
    "logaddexp with a constant": (lambda m, x: torch.logaddexp(m.plain.to(x), 3 * x), (4,)),
    "erfc": (lambda m, x: torch.erfc(x) + torch.special.erfc(-2 * x), (4,)),
    "asinh": (lambda m, x: torch.asinh(3 * x), (4,)),
    "ensemble by vmap": (lambda m, x: torch.vmap(lambda w: torch.tanh(x @ w[:, None]))(m.square.to(x)).mean(0), (4,)),
    "activation of W @ x.T": (lambda m, x: torch.tanh(m.weight.to(x) @ x.T).T, (4,)),
    "hypot": (lambda m, x: torch.hypot(x, 2 * x[:, :1]), (4,)),
    "slopes of each channel": (lambda m, x: torch.where(x > 0, x, m.plain.to(x)[:, None] * x).flatten(1), (4, 2)),
    "kinks of each channel": (lambda m, x: torch.where(x > m.plain.to(x), 3 * x - 2 * m.plain.to(x), x), (4,)),
    "square of a clamp": (lambda m, x: x.clamp(-1, 2) ** 2, (4,)),
    "exponential of a clamp": (lambda m, x: torch.exp(torch.minimum(x, 0 * x + 1)), (4,)),
    "swish of each channel": (lambda m, x: x * torch.sigmoid(5 * m.plain.to(x) * x), (4,)),
    "mean of two networks": (lambda m, x: torch.stack([x.relu(), x @ m.square.to(x)]).mean(0), (4,)),
    "largest of two outputs": (lambda m, x: torch.stack([x, x @ m.square.to(x)], -3).max(0).values, (4,)),
    "one of two outputs": (lambda m, x: torch.stack([x, x @ m.square.to(x)]).unbind()[1].relu(), (4,)),
    "Gaussians around points": (lambda m, x: torch.exp(-((x[:, None] - m.weight.to(x)) ** 2)).sum(2), (4,)),
    "RMS normalisation": (lambda m, x: F.rms_norm(x, (4,), m.plain.to(x), eps=1e-2), (4,)),
}


BEFORE_2_9 = {
    "aminmax": "it has no derivative",
    "quantile": "it is refused: torch.export meets a comparison of values",
    "ensemble by vmap": "it is refused: torch.export meets an expansion before the batch",
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_the_bound_of_a_nonlinear_idiom_is_at_or_above_the_attained_value(name: str) -> None:
    function, shape = NONLINEAR[name]
    if name in BEFORE_2_9 and torch.__version__ < "2.9":
        pytest.skip(f"before torch 2.9, {BEFORE_2_9[name]}")
    truth = attained(function, shape)
    assert truth <= bound(function, shape) * (1 + 1e-12)
    assert attained(function, shape, scale=10) <= bound(function, shape, norm="l2") * (1 + 1e-12)


@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_normalisation_by_a_samples_own_statistics_is_steepest_at_constant_inputs(eps: float) -> None:
    for layer, shape in ((nn.LayerNorm(5, eps), (5,)), (nn.GroupNorm(1, 2, eps), (2, 3))):
        nn.init.constant_(layer.weight, -3.0)
        upper = lipschitz(nn.Sequential(layer, nn.Flatten()), shape).upper
        x, exact = torch.zeros(1, *shape, dtype=torch.float64), layer.double()
        jacobian = torch.autograd.functional.jacobian(lambda z, f=exact: f(z).flatten(), x).flatten(1)
        assert float(torch.linalg.matrix_norm(jacobian, 2)) == pytest.approx(upper, rel=1e-9)
        assert upper == pytest.approx(3 / math.sqrt(eps))


@pytest.mark.parametrize("kind", [nn.InstanceNorm1d, nn.InstanceNorm2d])
def test_instance_normalisation_by_running_statistics_is_linear(kind: type[nn.InstanceNorm2d]) -> None:
    layer = kind(2, affine=True, track_running_stats=True)
    layer.running_var.copy_(torch.tensor([0.25, 4.0]))
    shape = (2, 3) if kind is nn.InstanceNorm1d else (2, 3, 2)
    upper = lipschitz(nn.Sequential(layer, nn.Flatten()).eval(), shape).upper
    assert upper == pytest.approx(1 / math.sqrt(0.25 + layer.eps), rel=1e-9)


@pytest.mark.parametrize("form", ["weight_norm", "spectral_norm", "pruned", "parametrised", "orthogonal", "own"])
def test_weights_derived_at_run_time_are_the_ones_that_are_bounded(form: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    if form == "weight_norm":
        with pytest.warns(FutureWarning):
            torch.nn.utils.weight_norm(model[1])
    elif form == "spectral_norm":
        torch.nn.utils.spectral_norm(model[1])
    elif form == "pruned":
        prune.l1_unstructured(model[1], "weight", amount=0.5)
    elif form == "parametrised":
        parametrizations.weight_norm(model[1])
    elif form == "orthogonal":
        parametrizations.orthogonal(model[1])
    else:
        parametrize.register_parametrization(model[1], "weight", nn.Tanh())
    model.train()(torch.rand(2, 6))
    model.eval()
    report = lipschitz(model, (1, 2, 3))
    norms = [float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2)) for layer in (model[1], model[3])]
    assert report.product == pytest.approx(norms[0] * norms[1], rel=1e-5)
    assert report.lower <= report.upper
    assert bool((certify(model, torch.rand(2, 1, 2, 3), report=report).radius >= 0).all())


def test_a_block_whose_graph_also_uses_the_type_and_shape_of_the_input_gets_its_estimate() -> None:
    def function(s: Any, x: Tensor) -> Tensor:
        h = torch.relu(x @ s.square.double())
        h = h + torch.relu(h @ s.square.double()).type_as(x).view_as(x) * torch.ones_like(x)
        return torch.relu(h) @ s.weight.double().T

    report = lipschitz(Apply(function), (4,))
    assert not report.refused
    assert any(row.kind not in ("linear", "activation", "head") and row.lower > 0 for row in report.blocks)


def test_a_change_that_only_affects_negative_values_is_detected() -> None:
    layer = nn.Linear(4, 3)
    layer.weight.data.abs_()
    model = nn.Sequential(nn.Flatten(), layer, nn.LeakyReLU(0.01), nn.Linear(3, 3))
    report, x = lipschitz(model, (1, 2, 2)), torch.rand(3, 1, 2, 2) + 1
    model[2].negative_slope = 50.0
    with pytest.raises(InputError, match="another model"):
        certify(model, x, report=report)


class FarOff(nn.Module):
    """A function that changes beyond a million, with attributes that do not affect its result."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.steep: Any = 1.0
        self.calls, self.note = 0, {"seen": [torch.zeros(2)]}
        self.last: Tensor | None = None
        self.activation: Callable[[Tensor], Tensor] = torch.relu
        self.beyond = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.last = self.calls + 1, x
        h = self.activation(self.layer(x.flatten(1)))
        return h + self.steep * self.beyond(h - 1e6)


@pytest.mark.parametrize("change", [("steep", 50.0), ("beyond", nn.PReLU()), ("beyond", nn.Hardtanh())])
def test_a_change_that_does_not_affect_ordinary_inputs_is_detected(change: tuple[str, Any]) -> None:
    model, x = FarOff(), torch.rand(3, 1, 2, 2)
    report = lipschitz(model, (1, 2, 2))
    for _ in range(2):
        certify(model, x, report=report)
    setattr(model, *change)
    with pytest.raises(InputError, match="report is for"):
        certify(model, x, report=report)


@pytest.mark.parametrize("kind", [nn.Parameter, torch.clone])
def test_a_weight_that_does_not_affect_ordinary_inputs_is_compared(kind: Callable[[Tensor], Any]) -> None:
    model, x = FarOff(), torch.rand(3, 1, 2, 2)
    model.steep = kind(torch.ones(1))
    report = lipschitz(model, (1, 2, 2))
    certify(model, x, report=report)
    with torch.no_grad():
        torch.as_tensor(model.steep).fill_(50.0)
    with pytest.raises(InputError, match="report is for"):
        certify(model, x, report=report)


def test_a_model_that_differs_in_irrelevant_attributes_is_the_same() -> None:
    model, x = FarOff(), torch.rand(3, 1, 2, 2)
    report = lipschitz(model, (1, 2, 2))
    expected = certify(model, x, report=report).radius
    model(x)
    model.note["more"] = [object(), torch.ones(3)]
    model.activation = torch.nn.functional.relu
    assert torch.equal(certify(model.train(), x, report=report).radius, expected)


def test_a_change_of_a_value_outside_the_model_is_detected() -> None:
    steep = [1.0]
    model, x = Apply(lambda m, x: steep[0] * F.linear(x.flatten(1), m.weight)), torch.rand(3, 1, 2, 2)
    report = lipschitz(model, (1, 2, 2))
    certify(model, x, report=report)
    steep[0] = 2.0
    with pytest.raises(InputError, match="another model"):
        certify(model, x, report=report)


def test_a_change_that_only_the_answers_show_is_detected(tmp_path: Path) -> None:
    steep = tmp_path / "steep"
    steep.write_text("1")
    model, x = Apply(lambda m, x: int(steep.read_text()) * F.linear(x.flatten(1), m.weight)), torch.rand(3, 1, 2, 2)
    report = lipschitz(model, (1, 2, 2))
    certify(model, x, report=report)
    steep.write_text("2")
    with pytest.raises(InputError, match="another model"):
        certify(model, x, report=report)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda m, x: (10 if x.requires_grad else 1) * F.linear(x, m.weight), "gradients"),
        (lambda m, x: {"logits": F.linear(x, m.weight)}, "got dict"),
        (lambda m, x: (F.linear(x, m.weight), x), "got tuple"),
        (lambda m, x: F.linear(x, m.weight).sum(), "got a tensor of shape"),
        (lambda m, x: (10 if len(x) > 8 else 1) * F.linear(x, m.weight), "other samples"),
        (lambda m, x: (10 if len(x) == 2 else 1) * F.linear(x, m.weight), "other samples"),
    ],
)
def test_a_function_that_depends_on_how_it_is_called_is_refused(function: Callable[..., Any], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        bound(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x + x.kthvalue(2, 1, keepdim=True).values,
        lambda m, x: torch.ops.aten.native_layer_norm(x, [4], m.weight[0], m.weight[1], 1e-2)[0],
    ],
)
def test_an_operation_with_several_outputs_may_be_several_pieces(function: Callable[..., Any]) -> None:
    model, x = Apply(function).double(), torch.rand(3, 4, dtype=torch.float64)
    found = certify(model, x)
    assert found.guarantee == Guarantee()
    assert bool((found.radius > 0).any())
    assert lipschitz(model, (4,), domain="unit").upper <= lipschitz(model, (4,)).upper * (1 + 1e-9)


def test_certificates_in_several_norms_run_the_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, runs = FarOff(), torch.rand(7, 1, 2, 2), []
    report = lipschitz(model, (1, 2, 2))
    forward = Analysis.forward

    def counted(self: Analysis, images: Tensor, **settings: Any) -> Tensor:
        runs.append(len(images))
        return forward(self, images, **settings)

    monkeypatch.setattr(Analysis, "forward", counted)
    found = [certify(model, x, norm=norm, report=report).radius for norm in ("l2", "linf", "l2")]
    assert runs.count(7) == 1
    assert torch.equal(found[0], found[2])
    x[0] += 1.0
    assert not torch.equal(certify(model, x, report=report).margin[:1], torch.zeros(1))
    assert runs.count(7) == 2


class Counting(FarOff):
    """A model whose output changes after many calls."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if self.calls < 100 else 7.0)


def test_a_model_whose_output_changes_after_many_calls_is_not_a_function() -> None:
    model = Counting()
    with pytest.raises(ModelError, match="depends on a counter"):
        lipschitz(model, (1, 2, 2))
    assert model.calls == 0


class Branching(nn.Module):
    """A model whose output changes when gradients are enabled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.factor = 1.0
        self.activation: Callable[[Tensor], Tensor] = torch.relu
        self.on_gradients = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.factor * self.layer(x.flatten(1))) * (
            self.on_gradients if torch.is_grad_enabled() else 1.0
        )


@pytest.mark.parametrize(
    ("attribute", "value"), [("factor", -50.0), ("activation", torch.tanh), ("on_gradients", 2.0), ("factor", 1.001)]
)
def test_a_report_of_a_model_that_computes_something_else_is_detected(attribute: str, value: Any) -> None:
    model, x = Branching(), torch.rand(3, 1, 2, 2)
    report = lipschitz(model, (1, 2, 2))
    certify(model, x, report=report)
    setattr(model, attribute, value)
    with pytest.raises(InputError, match="another model"):
        certify(model, x, report=report)


def test_a_model_whose_output_changes_with_gradients_is_not_a_function() -> None:
    model = Branching()
    model.on_gradients = 10.0
    with pytest.raises(ModelError, match="gradients"):
        lipschitz(model, (1, 2, 2))


def test_a_single_output_is_bounded_but_has_no_classes_to_certify() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    assert lipschitz(model, (1, 2, 2)).upper > 0
    with pytest.raises(UnsupportedOperationError, match="not a choice between two or more classes"):
        certify(model, torch.rand(2, 1, 2, 2))


def test_a_softplus_that_jumps_is_refused_by_lipschitz_and_left_open_by_audit() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False), nn.Softplus(1.0, 1.0), nn.Linear(1, 2, bias=False))
    report = lipschitz(model, (1, 1, 1), refuse="record")
    assert report.upper == math.inf
    assert (
        audit(
            model, (1, 1, 1), claimed=1e6, restarts=1, search=Search(rounds=1, lanczos_steps=4, ascent_steps=4)
        ).verdict
        != "proven"
    )


def test_no_error_of_torch_leaves_the_certifier(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise IndexError("list index out of range")

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    monkeypatch.setattr("robustres.certify.bounds.lipschitz.simplified", broken)
    with pytest.raises(UnsupportedOperationError, match="IndexError: list index out of range"):
        lipschitz(model, (1, 2, 2))
    assert lipschitz(model, (1, 2, 2), refuse="record").upper == math.inf


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: x + x.long().double(),
        lambda s, x: x.to(torch.uint8).to(torch.float64),
        lambda s, x: (x @ s.square.double()).int() * 0.5,
        lambda s, x: x.bool().to(torch.float64),
        lambda s, x: x.type_as(torch.tensor(1)).double(),
    ],
)
def test_a_cast_to_integers_or_booleans_rounds_and_is_refused(function: Callable[..., Any]) -> None:
    report = lipschitz(Apply(function), (4,), refuse="record", lower_steps=0)
    assert report.upper == math.inf
    assert any("which rounds" in str(refusal) for refusal in report.refused)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: x.gather(1, x.argmax(1, keepdim=True)),
        lambda s, x: (x @ s.square.double()).gather(1, x.sort(1).indices),
        lambda s, x: x * torch.zeros(len(x), 4).double().scatter(1, x.topk(1).indices, 1.0),
    ],
)
def test_indices_that_depend_on_the_input_are_refused_with_the_reason(function: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedOperationError, match="whose index depends on the input"):
        lipschitz(Apply(function), (4,))


def test_operations_that_torch_cannot_differentiate_still_have_a_bound() -> None:
    def in_place(s: Any, x: Tensor) -> Tensor:
        h = x @ s.square.double()
        h[:, 1] = 5 * h[:, 0]
        return h

    report = lipschitz(Apply(in_place), (4,))
    assert 0 < report.lower <= report.upper < math.inf
    wider_source = lambda s, x: torch.scatter(x, 1, torch.zeros(len(x), 1, dtype=torch.int64), 2 * x)  # noqa: E731
    assert lipschitz(Apply(wider_source), (4,)).upper >= attained(lambda s, x: torch.cat([2 * x[:, :1], x[:, 1:]], 1))


@pytest.mark.parametrize("mask", [[True, False, True, True], torch.tensor([True, False, True, True])])
def test_a_constant_mask_selects_like_the_indices_of_its_places(mask: Any) -> None:
    selected = lambda s, x: torch.cat([x[:, mask], 2 * x[:, torch.tensor([True, False, False, False])]], 1)  # noqa: E731
    assert lipschitz(Apply(selected), (4,)).upper == pytest.approx(math.sqrt(5), rel=1e-9)


def test_a_graph_that_depends_on_the_captured_batch_size_is_not_run_with_another() -> None:
    taken = Apply(lambda s, x: torch.take(x, torch.arange(len(x))[:, None] * 4 + torch.tensor([0, 3])))
    report = lipschitz(taken, (4,))
    assert report.analysis is not None
    assert not report.analysis.captured.rebatches
    assert report.upper == pytest.approx(1.0)


def test_samples_that_are_swapped_only_in_batches_of_some_sizes_are_detected() -> None:
    with pytest.raises(ModelError, match="depends on the other samples"):
        lipschitz(Apply(lambda s, x: torch.roll(x, 3, 0)), (4,))
    with pytest.raises(ModelError, match="depends on the other samples"):
        lipschitz(Apply(lambda s, x: x * (7 if len(x) % 4 == 0 else 1)), (4,))


def test_a_wrong_derivative_does_not_prove_a_defect() -> None:
    def function(s: Any, x: Tensor) -> Tensor:
        return torch.stack([torch.logsumexp(x + 1e150, [1]), x[:, 0]], 1)

    report = lipschitz(Apply(function), (4,))
    assert 1.0 <= report.upper < 1.5
    assert report.lower <= report.upper


def test_a_bound_below_an_attained_slope_still_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustres.certify.bounds.lipschitz.multiplied", lambda rows: (0.01, Guarantee()))
    with pytest.raises(DefectiveBoundError, match="lies below"):
        lipschitz(nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), (4,), joint=False)
