"""Budgets on existing networks: never exceeded, idempotent, and the result is an ordinary network."""

import copy
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torchvision.models.resnet import BasicBlock

from robustres.certify import lipschitz, spectral_norm
from robustres.certify.blocks.joint_bound import joint_bound
from robustres.certify.maps.linear_map import Identity
from robustres.data import load_data
from robustres.errors import InputError, ModelError
from robustres.models import ResidualNet, load_model, materialise, residual_net, save_checkpoint, save_model
from robustres.models.blocks.stated import map_of
from robustres.training import Recipe, enforce, plan_of, train
from robustres.training.block_budget import residual_blocks
from robustres.training.enforce import Method
from robustres.training.folded_layer import folded_layers
from robustres.training.graph_layers import graph_layers
from robustres.training.singular_value_clipping import clipped

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
    layers = folded_layers(model, SHAPE)
    return [float(torch.linalg.matrix_norm(layer.map.dense(), ord=2)) for layer in layers]


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


def test_a_network_within_its_budget_and_every_original_are_left_unchanged() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    generous = enforce(model, lipschitz=1e6, input_shape=SHAPE)
    enforce(model, lipschitz=0.5, input_shape=SHAPE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in generous.state_dict().items())


def test_training_continues_below_the_budget_and_the_result_is_saved(tmp_path: Path) -> None:
    model = residual_net(block="residual", depth=1, width=6, image_shape=SHAPE, classes=10)
    below = enforce(model, lipschitz=1.2, input_shape=SHAPE, trainable=True)
    data = load_data("digits", split="train", limit=200), load_data("digits", split="validation", limit=60)
    history = train(copy.deepcopy(below), *data, Recipe(epochs=3, learning_rate=1e-2))
    assert history.epochs[-1].loss < history.epochs[0].loss
    train(below, *data, Recipe(epochs=3, learning_rate=1e-2))
    assert max(norms(materialise(below))) <= 1.2
    loaded = load_model(str(save_checkpoint(below, tmp_path / "net"))).module
    assert max(norms(loaded)) <= 1.2


def test_batch_normalisation_is_treated_together_with_the_preceding_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    with torch.no_grad():
        model(2 * torch.rand(16, *SHAPE))
        model[1].weight.fill_(5.0)  # type: ignore[union-attr, operator]
        model[1].weight[0] = 0.0  # type: ignore[union-attr, index]
    for method in ("spectral", "clip"):
        enforced = enforce(model, lipschitz=1.0, input_shape=SHAPE, method=method)  # type: ignore[arg-type]
        assert enforced.state_dict().keys() == model.state_dict().keys()
        assert 0.9 < max(norms(enforced)) <= 1.0
        assert lipschitz(enforced, SHAPE).upper <= 1.0 * 2**0.5 + 1e-6
    below = enforce(model, lipschitz=1.0, input_shape=SHAPE, trainable=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in below.modules())


def test_a_separate_batch_normalisation_is_a_layer_of_its_own() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    enforced = enforce(model, lipschitz=0.5, input_shape=SHAPE)
    assert enforced[0].weight.item() == pytest.approx(0.5 * (1 + 1e-5) ** 0.5, rel=1e-4)  # type: ignore[index, union-attr]
    with pytest.raises(ModelError, match=r"0 \(aten.batch_norm.* cannot be brought below 0.5"):
        enforce(nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.Flatten()).eval(), lipschitz=0.5, input_shape=SHAPE)


class Functional(nn.Module):
    """A weight without its own module, doubled when it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 2, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, 2 * self.kernel, padding=1)


class Standardised(nn.Conv2d):
    """A weight that no factor changes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight / self.weight.std(), self.bias, padding=1)


class Gain(nn.Module):
    """A learnt scale, after a convolution or after an activation."""

    def __init__(self, *, behind: bool) -> None:
        super().__init__()
        self.convolution, self.gain = nn.Conv2d(2, 4, 3, padding=1), nn.Parameter(torch.full((4, 1, 1), 5.0))
        self.behind = behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.convolution(x)
        return torch.relu(h) * self.gain if self.behind else h * self.gain


def derived(derive: Callable[[nn.Module], object]) -> nn.Module:
    layer = nn.Conv2d(2, 4, 3, padding=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        derive(layer)
    layer.train()(torch.rand(1, 2, 6, 6))
    return layer


FRONTS: dict[str, Callable[[], nn.Module]] = {
    "functional": Functional,
    "scaled": lambda: Gain(behind=False),
    "scaled later": lambda: Gain(behind=True),
    "transposed": lambda: nn.ConvTranspose2d(2, 4, 3, padding=1),
    "circular": lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
    "same": lambda: nn.Conv2d(2, 4, 3, padding="same"),
    "weight norm by hook": lambda: derived(torch.nn.utils.weight_norm),
    "spectral norm by hook": lambda: derived(torch.nn.utils.spectral_norm),
    "pruned": lambda: derived(lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5)),  # type: ignore[no-untyped-call]
    "weight norm": lambda: torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3, padding=1)),
}


@pytest.mark.parametrize("name", FRONTS)
@pytest.mark.parametrize("method", ["spectral", "clip"])
def test_everything_with_weights_is_brought_below_the_budget(name: str, method: Method) -> None:
    torch.manual_seed(0)
    front = FRONTS[name]().eval()
    model = nn.Sequential(front, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    enforced = enforce(model, lipschitz=0.3, input_shape=(2, 6, 6), method=method).double()
    x = torch.rand(1, 2, 6, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(enforced[0], x).reshape(144, 72)  # type: ignore[index, no-untyped-call]
    assert 0 < float(torch.linalg.matrix_norm(jacobian, ord=2)) <= 0.3
    assert float(torch.linalg.matrix_norm(enforced[3].weight.detach(), ord=2)) <= 0.3  # type: ignore[index, union-attr, arg-type]
    assert all(layer.constant <= 0.3 for layer in graph_layers(enforced, (2, 6, 6)))


def test_a_one_dimensional_convolution_is_a_layer_too() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(24, 3)).eval()
    assert max(layer.constant for layer in graph_layers(model, (2, 8))) > 0.1
    enforced = enforce(model, lipschitz=0.1, input_shape=(2, 8))
    assert max(layer.constant for layer in graph_layers(enforced, (2, 8))) <= 0.1


@pytest.mark.parametrize(
    ("front", "named"),
    [
        (Standardised(2, 4, 3), "0 (aten.conv2d)"),
        (nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.PReLU(init=3.0)), "0.1 (aten.prelu)"),
    ],
)
def test_layers_that_cannot_be_brought_below_the_budget_are_named(front: nn.Module, named: str) -> None:
    model = nn.Sequential(front, nn.Flatten(), nn.Linear(144, 3)).eval()
    with pytest.raises(ModelError, match=re.escape(named)):
        enforce(model, lipschitz=0.3, input_shape=(2, 6, 6))
    with pytest.raises(ModelError, match="cannot go on training below a budget"):
        enforce(nn.Sequential(Functional(), nn.Flatten()), lipschitz=0.3, input_shape=(2, 6, 6), trainable=True)


def foreign() -> nn.Module:
    """Two blocks of torchvision, the second one with a projection of stride 2, with batch normalisation."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        BasicBlock(4, 4),
        BasicBlock(4, 6, 2, nn.Sequential(nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6))),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 10),
    )
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(32, *SHAPE))
    return model.eval()


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name == "joint" else pytest.mark.slow) for name in get_args(Method)]
)
def test_blocks_of_torchvision_keep_a_budget_by_the_certifier(method: Method) -> None:
    model, budget = foreign(), 0.8 if method in {"spectral", "clip"} else 1.6
    enforced = enforce(model, lipschitz=budget, input_shape=SHAPE, method=method)
    again = enforce(enforced, lipschitz=budget, input_shape=SHAPE, method=method)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in enforced.state_dict().items())
    assert {n: v.shape for n, v in enforced.state_dict().items()} == {n: v.shape for n, v in model.state_dict().items()}
    if method in {"spectral", "clip"}:
        assert 0.98 * budget < max(norms(enforced)) <= budget
        return
    joint = method == "joint"
    before = lipschitz(model, SHAPE, joint=False, lower_steps=0).blocks
    after = lipschitz(enforced, SHAPE, joint=joint, effort=0.2, lower_steps=0).blocks
    assert min(row.textbook for row in before if row.is_residual) > 1.2 * budget
    tops = [row.upper if joint else row.textbook for row in after if row.is_residual]
    assert len(tops) == 2
    assert 0.95 * budget < min(tops) <= max(tops) <= budget


def test_a_projection_above_the_budget_shrinks_with_its_branch() -> None:
    enforced = enforce(foreign()[4], lipschitz=0.2, input_shape=(4, 8, 8), method="scale")  # type: ignore[index]
    (block,) = residual_blocks(enforced, (4, 8, 8))
    assert 0.19 < block.bound(1.0, joint=False) <= 0.2


def test_a_third_party_network_continues_training_below_its_budget() -> None:
    below = enforce(foreign(), lipschitz=1.1, input_shape=SHAPE, trainable=True)
    data = load_data("digits", split="train", limit=100), load_data("digits", split="validation", limit=40)
    start = copy.deepcopy(below.state_dict())
    train(below, *data, Recipe(epochs=2, learning_rate=2e-2))
    assert any(not torch.equal(value, start[name]) for name, value in below.state_dict().items())
    assert max(norms(materialise(below))) <= 1.1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.Conv2d(3, 6, 4, 3, 0),
        nn.Conv2d(3, 5, 1, 2),
        nn.Conv2d(4, 6, 3, 1, 1, groups=2),
        nn.Conv2d(3, 6, 3, 1, 2, dilation=2),
    ],
    ids=str,
)
def test_clipping_supports_strides_groups_and_dilations(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    shape = (layer.in_channels, 8, 7)
    with torch.no_grad():
        layer.weight.normal_()
        dense = torch.linalg.svdvals(map_of(layer, shape).dense())
        budget = 0.6 * float(dense[0])
        cut = copy.deepcopy(layer)
        cut.weight.copy_(clipped(layer, shape, budget))
    values = torch.linalg.svdvals(map_of(cut, shape).dense())
    assert values[0] < 1.1 * budget  # the support of the kernel truncates each projection slightly
    assert values.square().sum() > 1.1 * (dense * budget / dense[0]).square().sum()  # more than scaling leaves


def test_clipping_leaves_small_singular_values_unchanged() -> None:
    torch.manual_seed(0)
    for layer in (nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(2, 3, 5, 3, 2)):
        torch.testing.assert_close(clipped(layer, (layer.in_channels, 9, 8), 1e3), layer.weight.detach())


@pytest.mark.parametrize("method", ["spectral", pytest.param("joint", marks=pytest.mark.slow)])
def test_the_published_network_is_brought_below_a_budget_and_loads_again(
    shared: Path, tmp_path: Path, method: Method
) -> None:
    pytest.importorskip("onnxruntime")
    source = str(shared / "models" / "resnet_2b.onnx")
    enforced = enforce(load_model(source).module, lipschitz=3.0, input_shape=(3, 32, 32), method=method)
    loaded = load_model(save_model(enforced, tmp_path, source=source)).module
    if method == "spectral":
        uppers = [spectral_norm(place.map).upper for place in folded_layers(loaded, (3, 32, 32))]
        assert len(uppers) == 8
    else:
        uppers = [block.bound(1.0, joint=True) for block in residual_blocks(loaded, (3, 32, 32))]
        assert len(uppers) == 2
    assert max(uppers) <= 3.0


WRAPPED = """
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)).eval()

def of(name):
    model = plain()
    layer = model[0]
    if name == "pruned":
        prune.l1_unstructured(layer, "weight", amount=0.5)
    elif name.startswith("parametrised "):
        getattr(parametrizations, name.split()[1])(model[4])
    else:
        getattr(torch.nn.utils, name)(layer)
        model.train()(torch.rand(2, 1, 8, 8))
    return model.eval()
"""


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrapping",
    [
        *("weight_norm", "spectral_norm", "pruned"),
        *("parametrised weight_norm", "parametrised spectral_norm", "parametrised orthogonal"),
    ],
)
def test_a_network_with_derived_weights_is_written_and_loads_again(
    wrapping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrapped_networks.py").write_text(WRAPPED)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = f"wrapped_networks:of(name={wrapping!r})"
    enforced = enforce(load_model(spec).module, lipschitz=0.5, input_shape=SHAPE)
    written = save_model(enforced, tmp_path / "out", source=spec)
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(load_model(written, input_shape=SHAPE).module(x), enforced(x), rtol=0, atol=0)


@pytest.mark.slow
def test_a_script_is_written_as_weights_for_it_and_loads_again(tmp_path: Path) -> None:
    names: dict[str, Callable[[], nn.Module]] = {}
    exec(WRAPPED, names)
    source = str(tmp_path / "net.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(names["plain"]()).save(source)
    enforced = enforce(load_model(source, input_shape=SHAPE).module, lipschitz=0.5, input_shape=SHAPE)
    written = save_model(enforced, tmp_path / "out", source=source)
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(load_model(written, input_shape=SHAPE).module(x), enforced(x), rtol=0, atol=0)


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
    with pytest.raises(ModelError, match="stride with a dilation"):
        enforce(
            nn.Sequential(nn.Conv2d(1, 2, 3, 2, 2, 2), nn.Flatten(), nn.Linear(32, 2)),
            lipschitz=0.1,
            input_shape=SHAPE,
            method="clip",
        )


def test_a_plan_with_a_layer_budget_fine_tunes_below_it(tmp_path: Path) -> None:
    model = residual_net(block="residual", depth=1, width=4, image_shape=SHAPE, classes=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    save_checkpoint(model, tmp_path / "model.safetensors")
    sets = load_data("digits", split="train", limit=100), load_data("digits", split="validation", limit=50)
    plan = plan_of(str(tmp_path / "model.safetensors"), None, {"layer_budget": 1.2, "epochs": 2, "loss": "emma"})
    tuned = plan.build(sets[0])
    before = norms(materialise(tuned))
    train(tuned, *sets, plan.recipe)
    after = norms(materialise(tuned))
    assert max(norms(model)) > 1.2 >= max(*before, *after)
    assert max(after) > 1.1
    save_model(tuned, tmp_path / "tuned", source=plan.source)
    again = load_model(str(tmp_path / "tuned" / "model.safetensors")).module
    assert max(norms(again)) <= 1.2
