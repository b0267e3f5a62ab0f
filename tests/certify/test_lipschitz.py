"""Complete networks: known results, comparisons with dense ground truth, and refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.certify import Bound, certify, lipschitz
from robustres.errors import InputError, ModelError, UnsupportedOperationError
from robustres.models import load_model


class Function(nn.Module):
    """A module whose forward is a function of itself and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Block(nn.Module):
    """A typical residual block: in-place activations, a shared ReLU, batch normalisation, a projection."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        plain = stride == 1 and channels == out
        self.skip = nn.Identity() if plain else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.skip(x)
        return self.relu(out)


def small_network(seed: int, channels: int = 3, stride: int = 2) -> nn.Sequential:
    """A random residual network on 2 x 6 x 6 images with nontrivial batch statistics."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1),
        nn.ReLU(),
        Block(channels, channels),
        Block(channels, channels + 1, stride),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels + 1, 3),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


def jacobian_norm(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The exact norm of the Jacobian at one input, by a dense singular value decomposition."""
    jacobian = torch.autograd.functional.jacobian(function, x[None])
    matrix = jacobian.reshape(-1, x.numel())
    return float(torch.linalg.matrix_norm(matrix, ord=2))


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 10**6), channels=st.integers(1, 4), stride=st.integers(1, 2))
def test_the_bounds_lie_above_every_jacobian_of_the_network_and_of_its_blocks(
    seed: int, channels: int, stride: int
) -> None:
    model = small_network(seed, channels, stride)
    report = lipschitz(model, (2, 6, 6), effort=0.05)
    assert [row.kind for row in report.residual_blocks] == [
        "residual (identity)",
        "residual (identity)" if isinstance(model[3].skip, nn.Identity) else "residual (projection)",
    ]
    exact = model.double()
    for x in torch.randn(3, 2, 6, 6, dtype=torch.float64) * 2:
        assert jacobian_norm(exact, x) <= report.upper
        hidden = exact[:2](x[None])[0].detach()
        assert jacobian_norm(exact[2], hidden) <= report.residual_blocks[0].upper
        assert jacobian_norm(exact[3], exact[2](hidden[None])[0].detach()) <= report.residual_blocks[1].upper
    assert 0 <= report.lower <= report.upper
    product = torch.tensor([row.upper for row in report.blocks], dtype=torch.float64).prod()
    assert report.product == pytest.approx(float(product), rel=1e-12)


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 10**6), norm=st.sampled_from(["l2", "linf"]))
def test_no_attack_inside_the_certified_radius_changes_the_prediction(seed: int, norm: str) -> None:
    model = small_network(seed).double()
    x = torch.rand(8, 2, 6, 6, dtype=torch.float64)
    certificates = certify(model, x, norm=norm, report=lipschitz(model, (2, 6, 6), effort=0.05))
    label, radius = certificates.prediction, certificates.radius.reshape(-1, 1, 1, 1)
    assert bool((certificates.radius > 0).any())
    best = x.clone()
    for _ in range(20):
        best.requires_grad_(True)
        logits = model(best)
        others = logits.scatter(1, label[:, None], -torch.inf).amax(1)
        (gradient,) = torch.autograd.grad((others - logits.gather(1, label[:, None])[:, 0]).sum(), best)
        with torch.no_grad():
            if norm == "linf":
                best = x + (best + radius * gradient.sign() - x).clamp(-radius, radius)
            else:
                moved = (
                    best - x + radius * gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-30).reshape(-1, 1, 1, 1)
                )
                length = moved.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
                best = x + moved * (radius / length.clamp_min(1e-30)).clamp_max(1)
            assert torch.equal(model(best).argmax(1), label)


def test_the_model_is_left_as_it_was() -> None:
    model = small_network(0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    certify(model, torch.rand(2, 2, 6, 6), report=lipschitz(model, (2, 6, 6), joint=False))
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


def test_a_linear_branch_counts_as_one_linear_map() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    model = Function(lambda self, x: x + self.conv(x), conv=conv)
    (row,) = lipschitz(model, (2, 5, 5)).blocks
    dense = torch.autograd.functional.jacobian(model.double(), torch.zeros(1, 2, 5, 5, dtype=torch.float64))
    truth = float(torch.linalg.matrix_norm(dense.reshape(50, 50), ord=2))
    assert truth <= row.upper <= truth * (1 + 1e-9)


def test_the_textbook_bound_of_a_scaled_block_adds_its_scaled_parts() -> None:
    inner, outer = nn.Linear(4, 4), nn.Linear(4, 4)
    model = Function(lambda self, x: 0.5 * x - 3 * self.outer(torch.relu(self.inner(x))), inner=inner, outer=outer)
    (row,) = lipschitz(model, (4,), joint=False).blocks
    branch = (
        3
        * torch.linalg.matrix_norm(inner.weight.detach().double(), 2)
        * torch.linalg.matrix_norm(outer.weight.detach().double(), 2)
    )
    assert row.kind == "residual (identity)"
    assert row.shortcut == pytest.approx(0.5)
    assert row.branch == pytest.approx(float(branch), rel=1e-12)
    assert row.textbook == pytest.approx(0.5 + float(branch), rel=1e-12)


def test_all_operations_without_a_rule_are_listed_at_once_with_their_paths() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x.flip(1))

    model = nn.Sequential(nn.Conv2d(2, 2, 3), Gate(), nn.LayerNorm(4, eps=0.0), nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(UnsupportedOperationError) as caught:
        lipschitz(model, (2, 6, 6))
    assert [refusal.path for refusal in caught.value.refused] == ["1", "2"]
    assert "mul" in caught.value.refused[0].operation
    assert "layer_norm" in caught.value.refused[1].operation
    report = lipschitz(model, (2, 6, 6), refuse="record")
    assert report.refused == caught.value.refused
    assert report.upper == float("inf")
    with pytest.raises(UnsupportedOperationError):
        certify(model, torch.rand(1, 2, 6, 6), report=report)


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: x - x.mean(0),
        lambda self, x: x.reshape(1, -1).expand(len(x), -1),
        lambda self, x: x.flip(0),
        lambda self, x: torch.cat([x[1:], x[:1]]),
    ],
)
def test_a_network_that_mixes_the_samples_of_a_batch_is_refused(function: Callable[[Any, Tensor], Tensor]) -> None:
    with pytest.raises((UnsupportedOperationError, ModelError)):
        lipschitz(Function(function), (4,))


def test_control_flow_that_depends_on_the_data_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"looks at the values of the input.*torch\.fx"):
        lipschitz(Function(lambda self, x: x if x.sum() > 0 else 2 * x), (4,))
    assert capfd.readouterr().err == ""


class Rescaled(nn.Module):
    """A residual block whose Python code uses the values of its weights, as networks with a budget do."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.gate, self.inner, self.outer = nn.Parameter(torch.tensor(gate)), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate.item() == 0:
            return x
        weight, norm = self.outer.weight, torch.linalg.matrix_norm(self.outer.weight, 2)
        if norm > 0.1:
            weight = weight / norm
        return x + self.gate.item() * torch.relu(self.inner(x)) @ weight.T


def test_python_code_that_depends_on_the_weights_is_traced_by_fx_with_their_current_values() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Rescaled(0.0), Rescaled(0.5), nn.Linear(4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = lipschitz(model, (4,), joint=False)
    assert [(row.name, row.kind) for row in report.blocks] == [("1", "residual (identity)"), ("2", "head")]
    inner = float(torch.linalg.matrix_norm(model[1].inner.weight.detach().double(), 2))
    assert report.blocks[0].upper == pytest.approx(1 + 0.5 * inner, rel=1e-9)
    x = torch.randn(8, 4, dtype=torch.float64)
    assert max(jacobian_norm(model.double(), sample) for sample in x) <= report.upper
    assert all(torch.equal(value.float(), before[name]) for name, value in model.state_dict().items())


def test_fx_does_not_trace_into_modules_that_state_their_bound() -> None:
    inner = Stated()
    model = Function(
        lambda self, x: self.inner(x) if float(self.gate.weight.sum()) else x, inner=inner, gate=nn.Linear(4, 4)
    )
    assert lipschitz(model, (4,), lower_steps=0).upper == pytest.approx(7.0)
    assert "forward" not in inner.__dict__


def test_torchscript_is_refused_with_advice() -> None:
    scripted = torch.jit.trace(nn.Linear(4, 4), torch.rand(1, 4))  # type: ignore[no-untyped-call]
    with pytest.raises(UnsupportedOperationError, match=r"TorchScript .*pass its nn\.Module.* at 1\b"):
        lipschitz(nn.Sequential(nn.Linear(4, 4), scripted), (4,))


def test_a_graph_whose_output_differs_from_that_of_the_model_is_refused() -> None:
    class Exported(nn.Module):
        """A model that is another function when it is exported."""

        def forward(self, x: Tensor) -> Tensor:
            return x * (2 if torch.compiler.is_exporting() else 1)

    with pytest.raises(ModelError, match="does not give the same output as the model"):
        lipschitz(Exported(), (4,))


def test_a_network_may_overwrite_its_input() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 3))
    x = torch.randn(5, 1, 2, 2)
    before = x.clone()
    assert lipschitz(model, (1, 2, 2)).upper == pytest.approx(
        float(torch.linalg.matrix_norm(model[2].weight.detach().double(), 2)), rel=1e-9
    )
    certify(model, x, dtype=torch.float32)
    assert torch.equal(x, before)


def test_an_activation_that_torch_differentiates_only_once_gets_an_estimate() -> None:
    torch.manual_seed(0)
    report = lipschitz(nn.Sequential(nn.Linear(4, 4), nn.Hardsigmoid(), nn.Linear(4, 2)), (4,))
    assert 0 < report.lower <= report.upper


def test_random_numbers_in_the_network_are_refused() -> None:
    with pytest.raises((UnsupportedOperationError, ModelError)):
        lipschitz(Function(lambda self, x: x * torch.rand(4, dtype=x.dtype)), (4,))


class Stated(nn.Module):
    """A module that the certifier cannot analyse and that states its own bound."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x).round()

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        assert input_shape == (4,)
        return Bound(0.0, 7.0, "its own word")


def test_a_module_that_states_its_bound_is_one_node_even_twice_and_nested() -> None:
    stated = Stated()
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(stated), nn.Linear(4, 4), stated)
    rows = lipschitz(model, (4,), lower_steps=0).blocks
    assert [row.upper for row in rows if row.kind == "stated"] == [7.0, 7.0]
    assert "forward" not in stated.__dict__
    assert lipschitz(stated, (4,), lower_steps=0).upper == pytest.approx(7.0)


def test_a_shared_module_counts_every_time_that_it_is_used() -> None:
    layer = nn.Linear(3, 3)
    norm = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    report = lipschitz(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer), (3,))
    assert report.product == pytest.approx(norm**3, rel=1e-12)
    assert [row.name for row in report.blocks] == ["0", "2", "4"]


def test_an_unknown_norm_is_an_input_error() -> None:
    with pytest.raises(InputError, match="l2 or linf"):
        lipschitz(nn.Linear(2, 2), (2,), norm="l1")  # type: ignore[arg-type]


def normalised(shared: Path) -> nn.Module:
    """The VNN-COMP 2021 network with its input normalisation."""
    pytest.importorskip("onnxruntime")
    network = load_model(str(shared / "models" / "resnet_2b.onnx")).module
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    std = torch.tensor([0.2471, 0.2435, 0.2616]).reshape(3, 1, 1)
    return Function(lambda self, x: self.network((x - mean) / std), network=network)


def test_the_textbook_bounds_of_resnet_2b_lie_within_half_a_percent_of_those_from_dense_norms(shared: Path) -> None:
    report = lipschitz(normalised(shared), (3, 32, 32), joint=False)
    first, second = report.residual_blocks
    assert first.kind == "residual (projection)"
    assert second.kind == "residual (identity)"
    # From the largest singular values of the dense matrices: 1.43170 + 2.39802 * 3.01143 and 1 + 2.99332 * 2.85650.
    assert 8.65313 <= first.textbook <= 1.005 * 8.65313
    assert 9.55042 <= second.textbook <= 1.005 * 9.55042
    assert report.guarantee.failure_probability == 0


def test_the_joint_bounds_of_resnet_2b_are_tight(shared: Path) -> None:
    report = lipschitz(normalised(shared), (3, 32, 32))
    first, second = report.residual_blocks
    # 3.755 and 5.542 are attained with free slopes, so no bound of this kind can be smaller.
    assert 3.6 <= first.floor <= 3.755 <= first.upper <= 4.15
    assert 5.45 <= second.floor <= 5.542 <= second.upper <= 6.0
    assert 0 < first.lower < first.floor
    assert first.method == second.method == "joint"


def test_a_convex_potential_block_and_a_bottleneck_are_bounded_jointly() -> None:
    torch.manual_seed(0)
    weight = nn.Linear(6, 6, bias=False)
    factor = 2 / float(torch.linalg.matrix_norm(weight.weight.detach().double(), 2)) ** 2

    def block(self: Any, x: Tensor) -> Tensor:
        return x - factor * torch.relu(self.weight(x)) @ self.weight.weight

    (row,) = lipschitz(Function(block, weight=weight), (6,)).blocks
    assert row.kind == "residual (identity)"
    assert row.upper == pytest.approx(1, abs=1e-4)
    layers = {name: nn.Conv2d(2, 2, kernel, padding=kernel // 2) for name, kernel in (("a", 1), ("b", 3), ("c", 1))}
    bottleneck = Function(lambda self, x: x + self.c(torch.relu(self.b(torch.relu(self.a(x))))), **layers)
    (row,) = lipschitz(bottleneck, (2, 4, 4)).blocks
    assert row.lower <= row.upper < row.textbook


def test_a_preactivation_block_is_bounded_jointly() -> None:
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(2, 2, 3, padding=1), "b": nn.Conv2d(2, 2, 3, padding=1), "bn": nn.BatchNorm2d(2)}
    model = Function(lambda self, x: x + self.b(torch.relu(self.a(torch.relu(self.bn(x))))), **layers)
    (row,) = lipschitz(model, (2, 4, 4)).blocks
    assert row.kind == "residual (identity)"
    assert row.lower <= row.upper < row.textbook


def test_a_report_shows_every_candidate_bound_of_a_block_and_reads_as_a_table() -> None:
    torch.manual_seed(0)
    report = lipschitz(nn.Sequential(Block(2, 2), nn.Flatten(), nn.Linear(32, 3)).eval(), (2, 4, 4), effort=0.2)
    ledger = report.ledger()
    (block,) = report.residual_blocks
    shown = ledger.set_index("name").loc[block.name]
    assert all(shown[method] == value for method, value in block.candidates.items())
    assert {"textbook", "upper", "lower", "tightness", "seconds", "guarantee"} <= set(ledger.columns)
    assert shown["upper"] == min(block.candidates.values()) == block.upper
    assert shown["tightness"] == block.upper / block.lower
    assert block.name in str(report)
    assert f"at most {report.upper:.6g}" in str(report)
    assert "tensor(" not in repr(report)
