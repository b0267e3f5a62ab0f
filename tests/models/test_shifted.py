"""Networks of shift blocks: two ways of computing one function, isometries, and their certified bounds."""

from dataclasses import replace

import pytest
import torch

from robustres.certify import lipschitz
from robustres.errors import ModelError
from robustres.models import Architecture, build, load_checkpoint, materialise, save_checkpoint
from robustres.models.blocks.shifted import shifted
from robustres.models.constraints.activations import HalfAbs

SMALL = Architecture(
    "shift", 2, 16, (3, 8, 8), 4, activation="half-abs", stem_kernel=2, stem_stride=2, downsample=(1, 2),
    widths=(24, 20), dense=(12, 12),
)  # fmt: skip


@pytest.mark.parametrize("activation", ["half-abs", "maxmin", "relu"])
@pytest.mark.parametrize("width", [16, 6])
def test_training_and_evaluation_compute_the_same_function_and_gradients(activation: str, width: int) -> None:
    network = build(replace(SMALL, activation=activation, width=width)).double()
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    results = []
    for training in (True, False):
        network.train(training).zero_grad()
        logits = network(x)
        logits.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        results.append((logits.detach(), gradients))
    torch.testing.assert_close(results[0][0], results[1][0])
    for fast, plain in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(fast, plain)


def test_a_shift_is_a_permutation_that_moves_half_of_the_channels() -> None:
    x = torch.arange(2 * 16 * 3 * 4, dtype=torch.float64).reshape(2, 16, 3, 4)
    moved = shifted(x, 1)
    assert torch.equal(moved.flatten(1).sort(dim=1).values, x.flatten(1))
    assert torch.equal(moved[:, 8:], x[:, 8:])
    assert not any(torch.equal(moved[:, channel], x[:, channel]) for channel in range(8))


def test_half_abs_is_an_isometry_almost_everywhere_in_both_modes() -> None:
    act, x = HalfAbs(6).double(), torch.randn(4, 6, 2, 2, dtype=torch.float64)
    plain = act.eval()(x)
    jacobian = torch.autograd.functional.jacobian(act, x[:1]).reshape(24, 24)
    torch.testing.assert_close(jacobian @ jacobian.T, torch.eye(24, dtype=torch.float64))
    assert torch.equal(act.train()(x.requires_grad_()), plain)


def test_the_whole_network_before_the_head_is_bounded_by_1_and_nearly_attains_it(tmp_path: object) -> None:
    torch.manual_seed(0)
    network = materialise(build(SMALL)).double()
    head = float(torch.linalg.matrix_norm(network.head.weight.detach(), ord=2))  # type: ignore[union-attr, operator]
    report = lipschitz(network, (3, 8, 8), effort=0.5)
    assert report.lower <= report.upper <= head * (1 + 1e-9)
    assert report.lower >= 0.5 * head


def test_a_checkpoint_keeps_the_network(tmp_path: object) -> None:
    network = materialise(build(SMALL))
    file = f"{tmp_path}/net.safetensors"
    save_checkpoint(network, file)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(load_checkpoint(file).eval()(x), network(x))


def test_widths_must_fit_the_transitions() -> None:
    with pytest.raises(ModelError, match="widths gives the channels"):
        Architecture("shift", 2, 16, (3, 8, 8), 4, downsample=(1,))
    with pytest.raises(ModelError, match="widths gives the channels"):
        Architecture("linear", 2, 16, (3, 8, 8), 4, widths=(16,))
