"""Budgets on existing networks: never exceeded, idempotent, and the network stays an ordinary one."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from robustres.certify import lipschitz, spectral_norm
from robustres.certify.joint import joint_bound
from robustres.certify.linear_map import Identity
from robustres.data import load_data
from robustres.errors import InputError, ModelError
from robustres.models import ResidualNet, load_model, materialise, residual_net, save_checkpoint
from robustres.models.stated import map_of
from robustres.training import Recipe, enforce, train
from robustres.training.enforce import Method, _input_shapes

SHAPE = (1, 8, 8)
SMALL = (1, 5, 4)


def network(**settings: object) -> ResidualNet:
    model = residual_net(block="residual", depth=2, width=6, image_shape=SHAPE, classes=4, downsample=(1,), **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    return model.eval()


def small() -> ResidualNet:
    model = residual_net(block="residual", depth=1, width=3, image_shape=SMALL, classes=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    return model.eval()


def norms(model: nn.Module) -> list[float]:
    shapes = _input_shapes(model, SHAPE)
    layers = [layer for layer in shapes if isinstance(layer, nn.Conv2d | nn.Linear)]
    return [float(torch.linalg.matrix_norm(map_of(layer, shapes[layer]).dense(), ord=2)) for layer in layers]


def test_spectral_brings_every_layer_below_the_budget_and_no_further() -> None:
    found = norms(enforce(network(), lipschitz=1.5, input_shape=SHAPE))
    assert max(found) <= 1.5
    assert max(found) > 1.45


def test_clipping_keeps_more_of_the_small_singular_values() -> None:
    model = residual_net(block="residual", depth=1, width=6, image_shape=SHAPE, classes=4)
    divided, cut = (
        enforce(model, lipschitz=0.5, input_shape=SHAPE, method=method)  # type: ignore[arg-type]
        for method in ("spectral", "clip")
    )
    assert max(norms(cut)) <= 0.5
    energy = [sum(float(p.detach().square().sum()) for p in m.parameters() if p.ndim > 1) for m in (divided, cut)]
    assert energy[1] > 1.1 * energy[0]


@pytest.mark.parametrize("method", ["scale", "joint"])
def test_residual_blocks_fit_their_budget_by_the_certifier(method: Method) -> None:
    enforced = enforce(small(), lipschitz=2.0, input_shape=SMALL, method=method)
    for block in enforced.blocks:  # type: ignore[union-attr]
        layers = [map_of(block.branch[place][0], (3, 5, 4)) for place in (0, 2)]  # type: ignore[index]
        assert joint_bound(Identity((3, 5, 4)), *layers, effort=0.2).upper <= 2.0


def test_the_joint_budget_leaves_more_of_the_branch() -> None:
    model = small()
    weights = [
        enforce(model, lipschitz=2.0, input_shape=SMALL, method=method).blocks[0].branch[2][0].weight.norm().item()  # type: ignore[union-attr, index, arg-type]
        for method in ("scale", "joint")
    ]
    assert weights[1] > 1.05 * weights[0]


@pytest.mark.parametrize("method", ["spectral", "scale", "joint"])
def test_enforcing_twice_changes_nothing(method: Method) -> None:
    once = enforce(small(), lipschitz=2.0, input_shape=SMALL, method=method)
    twice = enforce(once, lipschitz=2.0, input_shape=SMALL, method=method)
    assert all(torch.equal(value, twice.state_dict()[name]) for name, value in once.state_dict().items())


def test_a_network_within_its_budget_is_left_as_it_is_and_the_original_always() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    generous = enforce(model, lipschitz=1e6, input_shape=SHAPE)
    enforce(model, lipschitz=0.5, input_shape=SHAPE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in generous.state_dict().items())


def test_training_goes_on_below_the_budget_and_the_result_is_saved(tmp_path: Path) -> None:
    model = residual_net(block="residual", depth=1, width=6, image_shape=SHAPE, classes=10)
    below = enforce(model, lipschitz=1.2, input_shape=SHAPE, trainable=True)
    data = load_data("digits", split="train", limit=200), load_data("digits", split="validation", limit=60)
    history = train(copy.deepcopy(below), *data, Recipe(epochs=3, learning_rate=1e-2))
    assert history.epochs[-1].loss < history.epochs[0].loss
    train(below, *data, Recipe(epochs=3, learning_rate=1e-2))
    assert max(norms(materialise(below))) <= 1.2
    loaded = load_model(str(save_checkpoint(below, tmp_path / "net"))).module
    assert max(norms(loaded)) <= 1.2


def test_batch_normalisation_is_folded_first() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    with torch.no_grad():
        model(2 * torch.rand(16, *SHAPE))
        model[1].weight.fill_(5.0)  # type: ignore[union-attr, operator]
    enforced = enforce(model, lipschitz=1.0, input_shape=SHAPE)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in enforced.modules())
    assert max(norms(enforced)) <= 1.0
    assert lipschitz(enforced, SHAPE).upper <= 1.0 * 2**0.5 + 1e-6
    with pytest.raises(ModelError, match="without a convolution before it"):
        enforce(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 2)), lipschitz=1.0, input_shape=SHAPE)


def test_the_published_network_is_brought_below_a_budget(shared: Path) -> None:
    pytest.importorskip("onnx2torch")
    model = load_model(str(shared / "models" / "resnet_2b.onnx")).module
    enforced = enforce(model, lipschitz=1.0, input_shape=(3, 32, 32))
    shapes = _input_shapes(enforced, (3, 32, 32))
    uppers = [spectral_norm(map_of(layer, shape)).upper for layer, shape in shapes.items()]
    assert len(uppers) == 8
    assert max(uppers) <= 1.0


def test_impossible_budgets_and_methods_are_refused() -> None:
    with pytest.raises(InputError, match="budget must be positive"):
        enforce(network(), lipschitz=0.0, input_shape=SHAPE)
    with pytest.raises(InputError, match="method must be one of"):
        enforce(network(), lipschitz=1.0, input_shape=SHAPE, method="magic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="only the method 'spectral'"):
        enforce(network(), lipschitz=1.0, input_shape=SHAPE, method="clip", trainable=True)
    with pytest.raises(InputError, match="a shortcut alone has norm 1"):
        enforce(network(), lipschitz=1.0, input_shape=SHAPE, method="scale")
    with pytest.raises(ModelError, match="no residual block"):
        enforce(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), lipschitz=1.0, input_shape=SHAPE, method="joint")
    with pytest.raises(ModelError, match="stride 1"):
        enforce(network(), lipschitz=0.1, input_shape=SHAPE, method="clip")
