"""Networks from a description, their materialised form, and normalisation as a part of the network."""

import copy

import pytest
import torch
from torch.nn.utils import parametrize

from robustres.errors import ModelError
from robustres.models import BLOCKS, PRESETS, Architecture, Normalised, materialise, preset, residual_net


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_block_makes_a_network_for_small_images(block: str) -> None:
    network = residual_net(block=block, depth=2, width=4, image_shape=(3, 8, 6), classes=5)
    assert network(torch.rand(2, 3, 8, 6)).shape == (2, 5)


def test_a_network_for_large_images_downsamples_and_pools() -> None:
    network = residual_net(
        block="residual",
        depth=3,
        width=4,
        image_shape=(3, 224, 224),
        classes=5,
        stem_kernel=7,
        stem_stride=4,
        downsample=(1, 2),
        pool=1,
        batch_norm=True,
    ).eval()
    assert network(torch.rand(1, 3, 224, 224)).shape == (1, 5)
    assert network.head.in_features == 16


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "large" in name else ()) for name in sorted(PRESETS)]
)
def test_presets_can_be_built_and_state_their_classes(name: str) -> None:
    network = preset(name).eval()
    shape = PRESETS[name].image_shape
    assert network(torch.rand(2, *shape)).shape == (2, PRESETS[name].classes)


def test_growth_is_one_number_for_each_transition() -> None:
    shared = {"width": 4, "depth": 2, "image_shape": (1, 8, 8), "classes": 3, "downsample": (1,)}
    grown = residual_net(block="orthogonal-convolution", growth=(4,), **shared)  # type: ignore[arg-type]
    assert grown.head.in_features == 16 * 4 * 4
    for block, growth, sentence in (
        ("linear", (2, 2), "for each of the 1 positions"),
        ("linear", (5,), "growth must give 1, 2, 3 or 4"),
        ("residual", (2,), "growth is for constrained blocks"),
    ):
        with pytest.raises(ModelError, match=sentence):
            residual_net(block=block, growth=growth, **shared)  # type: ignore[arg-type]


def test_the_three_tiny_networks_are_of_equal_size() -> None:
    sizes = [
        sum(parameter.numel() for parameter in preset(name).parameters())
        for name in ("plain-tiny", "residual-tiny", "constrained-tiny")
    ]
    assert max(sizes) < 1.02 * min(sizes)


def test_random_weights_come_from_the_seed_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = preset("constrained-tiny"), preset("constrained-tiny"), preset("constrained-tiny", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(first(x), same(x))
    assert not torch.allclose(first(x), other(x))


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_materialising_keeps_the_function_and_leaves_the_original_trainable(block: str) -> None:
    network = residual_net(block=block, depth=2, width=4, image_shape=(1, 6, 6), classes=3, stem_kernel=3)
    network.train()
    for _ in range(20):
        network(torch.rand(1, 1, 6, 6))
    network.eval()
    x = torch.rand(4, 1, 6, 6)
    plain = materialise(network)
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())
    assert torch.allclose(plain(x), network(x), atol=1e-2)
    again = copy.deepcopy(network).train()
    again(x).sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())


def test_an_architecture_survives_json_and_refuses_invalid_values() -> None:
    architecture = PRESETS["constrained-tiny"]
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in architecture.as_dict().items()}
    assert Architecture.from_dict(values) == architecture
    with pytest.raises(ModelError, match="fields of Architecture"):
        Architecture.from_dict({"block": "plain", "colour": 3})
    with pytest.raises(ModelError, match="at least 2 classes"):
        Architecture("plain", 1, 4, (1, 8, 8), 1)
    with pytest.raises(ModelError, match="kernel must be odd"):
        Architecture("plain", 1, 4, (1, 8, 8), 2, kernel=4)
    with pytest.raises(ModelError, match="smaller than the stem"):
        Architecture("plain", 1, 4, (1, 4, 4), 2, stem_kernel=8, stem_stride=8)
    with pytest.raises(ModelError, match="has no setting colour"):
        residual_net(block="plain", depth=1, width=4, image_shape=(1, 8, 8), classes=2, colour=1)
    with pytest.raises(ModelError, match="cannot be pooled evenly"):
        residual_net(block="plain", depth=1, width=4, image_shape=(1, 8, 8), classes=2, pool=3)
    with pytest.raises(ModelError, match="preset must be one of"):
        preset("huge")


def test_normalisation_is_part_of_the_function() -> None:
    inner = residual_net(block="plain", depth=1, width=4, image_shape=(3, 6, 6), classes=3)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    x = torch.rand(2, 3, 6, 6)
    shifted = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(Normalised(inner, mean, std)(x), inner(shifted), atol=1e-6)


def test_impossible_normalisation_is_refused() -> None:
    inner = residual_net(block="plain", depth=1, width=4, image_shape=(3, 6, 6), classes=3)
    with pytest.raises(ModelError, match="std must be positive"):
        Normalised(inner, (0.0,), (0.0,))
    with pytest.raises(ModelError, match="one number per channel each"):
        Normalised(inner, (0.0,), (1.0, 1.0))
    with pytest.raises(ModelError, match="2 channels but the images have 3"):
        Normalised(inner, (0.0, 0.0), (1.0, 1.0))(torch.rand(1, 3, 6, 6))
