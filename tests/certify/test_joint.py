"""The joint bound of residual blocks against brute force over activation patterns, known answers and real pairs."""

from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustres.certify.blocks import joint_bound as joint
from robustres.certify.blocks import joint_search
from robustres.certify.blocks.joint_bound import branch_bound, joint_bound
from robustres.certify.blocks.mask_ascent import mask_ascent
from robustres.certify.blocks.residual_block import ResidualBlock
from robustres.certify.maps.convolution import Convolution, average_pool
from robustres.certify.maps.linear_map import Composition, Dense, Identity, LinearMap, Scaled
from robustres.certify.maps.sector import GroupSort, Slopes
from robustres.errors import InputError

TINY = 0.05  # effort: enough for a valid bound


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def brute_force(shortcut: Tensor, inner: Tensor, outer: Tensor, slopes: tuple[float, float]) -> float:
    """The largest norm over every choice of extreme slopes: at most the constant of the family."""
    patterns = torch.tensor(list(product(slopes, repeat=len(inner))), dtype=torch.float64)
    return float(torch.linalg.matrix_norm(shortcut + (outer * patterns[:, None]) @ inner, 2).max())


def stretch(block: ResidualBlock, seed: int = 0) -> float:
    """The largest |f(x) - f(x')| / |x - x'| over random pairs, near and far, biases included."""
    x = 3 * normal(200, *block.shortcut.in_shape, seed=seed)
    other = x + normal(*x.shape, seed=seed + 1) * torch.logspace(-6, 0, 200).reshape(-1, *[1] * (x.ndim - 1))
    difference = (_forward(block, x) - _forward(block, other)).flatten(1).norm(dim=1)
    return float((difference / (x - other).flatten(1).norm(dim=1)).max())


def _forward(block: ResidualBlock, x: Tensor) -> Tensor:
    signal = x
    for layer, slopes in zip(block.layers, block.slopes, strict=False):
        signal = _activate(layer(signal) + 0.3 * normal(*layer.out_shape, seed=7), slopes)
    return block.shortcut(x) + block.layers[-1](signal)


def _activate(z: Tensor, slopes: Slopes) -> Tensor:
    if not isinstance(slopes, GroupSort):
        return torch.where(z > 0, slopes[1] * z, slopes[0] * z)
    groups = z.shape[1] // slopes.size
    if slopes.layout == "adjacent":
        split = z.reshape(len(z), groups, slopes.size, -1)
        return split.sort(dim=2).values.reshape(z.shape)
    split = z.reshape(len(z), slopes.size, groups, -1)
    return split.sort(dim=1).values.reshape(z.shape)


@settings(deadline=None, max_examples=6)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000), st.floats(0.1, 3))
def test_no_activation_pattern_exceeds_the_dense_bound(
    inputs: int, hidden: int, outputs: int, seed: int, size: float
) -> None:
    S, W, V = (
        normal(outputs, inputs, seed=seed),
        size * normal(hidden, inputs, seed=seed + 1),
        normal(outputs, hidden, seed=seed + 2),
    )
    for slopes in ((0.0, 1.0), (-1.0, 1.0), (0.2, 1.0), (-0.5, 2.0)):
        bound = joint_bound(Dense(S), Dense(W), Dense(V), slopes=slopes, effort=TINY)
        truth = brute_force(S, W, V, slopes)
        assert truth <= bound.upper * (1 + 1e-12)
        assert bound.lower <= truth * (1 + 1e-12)
        assert bound.upper == min(bound.candidates.values())


def test_the_dense_bound_is_close_to_the_best_pattern() -> None:
    S, W, V = torch.eye(8, dtype=torch.float64), normal(10, 8), normal(8, 10, seed=1)
    bound = joint_bound(Dense(S), Dense(W), Dense(V))
    assert bound.upper <= 1.06 * brute_force(S, W, V, (0.0, 1.0))
    assert bound.upper < 0.8 * bound.candidates["textbook"]


@st.composite
def convolutional_blocks(draw: st.DrawFn) -> ResidualBlock:
    """Basic blocks with identity, projection and pooling shortcuts, strides, asymmetric padding, groups, two slopes."""
    channels, hidden, side = draw(st.integers(1, 3)), 2 * draw(st.integers(1, 2)), draw(st.integers(2, 6))
    stride, kernel, seed = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3, 5])), draw(st.integers(0, 999))
    before = draw(st.integers(0, kernel - 1))
    pads = (before, kernel - 1 - before)
    circular = draw(st.sampled_from([False, False, True]))
    assume(not circular or max(pads) <= side)
    image = (channels, side, side)
    inner = Convolution(
        normal(hidden, channels, kernel, kernel, seed=seed), image, stride, (pads, pads), circular=circular
    )
    middle = inner.out_shape
    last = draw(st.sampled_from([1, 3]))
    assume(not circular or last // 2 <= middle[1])
    padding = last // 2
    if stride == 1 and draw(st.booleans()):
        outer = Convolution(normal(channels, hidden, last, last, seed=seed + 1), middle, 1, padding, circular=circular)
        shortcut: LinearMap = Scaled(draw(st.sampled_from([1.0, -0.5])), Identity(image))
    else:
        outer = Convolution(normal(4, hidden, last, last, seed=seed + 1), middle, 1, padding, circular=circular)
        shortcut = Convolution(normal(4, channels, 1, 1, seed=seed + 2), image, stride)
        if stride == 2 and side % 2 == 0 and draw(st.booleans()):
            pool = average_pool(image, 2)
            shortcut = Convolution(normal(4, channels, 1, 1, seed=seed + 2), pool.out_shape) @ pool
    slopes = draw(
        st.sampled_from([(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), (0.5, 0.9), GroupSort(2), GroupSort(2, "strided")])
    )
    return ResidualBlock(shortcut, (inner, outer), (slopes,))


@settings(deadline=None, max_examples=8)
@given(convolutional_blocks())
def test_no_pattern_and_no_pair_exceeds_the_bound_on_any_torus(block: ResidualBlock) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_search, "DENSE_WIDTH", 0)
        bound = branch_bound(block.shortcut, block.layers, slopes=block.slopes, effort=TINY)
    slack = 1 + 1e-12
    for value in bound.candidates.values():
        assert mask_ascent(block, steps=60, restarts=4).value <= value * slack
        assert stretch(block) <= value * slack + 1e-8
    assert bound.upper == min(bound.candidates.values())


@settings(deadline=None, max_examples=6)
@given(convolutional_blocks())
def test_the_dense_form_of_a_convolutional_block_is_a_bound_too(block: ResidualBlock) -> None:
    assume(block.shortcut.in_size + block.layers[0].out_size <= 120)
    bound = branch_bound(block.shortcut, block.layers, slopes=block.slopes, effort=TINY)
    assert mask_ascent(block, steps=60, restarts=4).value <= bound.upper * (1 + 1e-12)
    assert stretch(block) <= bound.upper * (1 + 1e-12) + 1e-8


def test_cpl_blocks_are_recognised_as_1_lipschitz() -> None:
    W = normal(12, 8)
    V = -2 / float(torch.linalg.matrix_norm(W, 2)) ** 2 * W.T
    assert joint_bound(Identity((8,)), Dense(W), Dense(V)).upper <= 1 + 1e-5
    kernel = normal(6, 4, 3, 3)
    inner = Convolution(kernel, (4, 12, 12), padding=1, circular=True)
    sigma = joint.spectral_norm(inner, method="frequency").upper
    outer = Convolution(-2 / sigma**2 * kernel.transpose(0, 1).flip(2, 3), (6, 12, 12), padding=1, circular=True)
    assert joint_bound(Identity((4, 12, 12)), inner, outer).upper <= 1 + 1e-5


def test_sll_blocks_are_recognised_as_1_lipschitz() -> None:
    W = normal(12, 8)
    q = normal(12, seed=3).abs() + 0.5
    T = ((W @ W.T).abs() * q / q[:, None]).sum(1)
    bound = joint_bound(Identity((8,)), Dense(W), Dense(-2 * W.T / T))
    assert bound.upper <= 1 + 1e-5
    assert bound.candidates["textbook"] > 1.5


def test_a_branch_that_is_never_active_leaves_the_shortcut() -> None:
    shortcut = Convolution(normal(3, 2, 1, 1), (2, 8, 8), 2)
    inner, outer = (
        Convolution(normal(4, 2, 3, 3), (2, 8, 8), 2, 1),
        Convolution(torch.zeros(3, 4, 3, 3), (4, 4, 4), 1, 1),
    )
    exact = float(torch.linalg.matrix_norm(shortcut.weight[:, :, 0, 0], 2))
    assert joint_bound(shortcut, inner, outer).upper == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_joint_bound_follows_tiny_and_huge_weights(size: float) -> None:
    W, V = normal(6, 5), normal(5, 6, seed=1)
    plain = joint_bound(Identity((5,)), Dense(W), Dense(V), effort=TINY).upper
    shifted = joint_bound(Identity((5,)), Dense(W * size), Dense(V / size), effort=TINY).upper
    assert shifted == pytest.approx(plain, rel=0.05)
    small = joint_bound(Identity((5,)), Dense(W * 1e-30), Dense(V), effort=TINY).upper
    assert 1 <= small <= 1 + 1e-6


def test_a_linear_activation_gives_the_norm_of_the_merged_map() -> None:
    S, W, V = normal(4, 4), normal(5, 4, seed=1), normal(4, 5, seed=2)
    bound = joint_bound(Dense(S), Dense(W), Dense(V), slopes=(0.7, 0.7))
    assert bound.upper == pytest.approx(float(torch.linalg.matrix_norm(S + 0.7 * V @ W, 2)), rel=1e-9)
    assert bound.method == "linear"


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.1, 1.0), (-1.0, 1.0), GroupSort(2), GroupSort(4)])
@pytest.mark.parametrize("dense", [True, False])
def test_bottleneck_branches_are_bounded(slopes: Slopes, dense: bool) -> None:
    image = (4, 6, 6)
    layers = (
        Convolution(0.5 * normal(4, 4, 1, 1), image),
        Convolution(0.5 * normal(4, 4, 3, 3, seed=1), image, padding=1),
        Convolution(0.5 * normal(4, 4, 1, 1, seed=2), image),
    )
    block = ResidualBlock(Identity(image), layers, (slopes, slopes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_search, "DENSE_WIDTH", 1000 if dense else 0)
        bound = branch_bound(block.shortcut, layers, slopes=block.slopes, effort=1.0)
    assert mask_ascent(block, steps=60, restarts=4).value <= bound.upper
    assert stretch(block) <= bound.upper
    if slopes == (0.0, 1.0):
        assert bound.upper <= 0.9 * bound.candidates["textbook"]


def test_hidden_units_outside_the_image_have_the_slope_zero() -> None:
    """The outer kernel inverts the inner one on the torus, where S + 0.99 V W nearly vanishes; at the border, where
    the next layer reads zeros instead, it does not. Slopes of [0.98, 1] beyond the border would give 0.51 < 0.90."""
    spectrum = torch.fft.fft(torch.tensor([1.0, 0.45, *[0.0] * 253, 0.45], dtype=torch.float64))
    inverse = torch.fft.ifft(1 / spectrum).real
    taps = torch.cat((inverse[-4:], inverse[:5]))
    image = (1, 1, 10)
    inner = Convolution(torch.tensor([0.45, 1.0, 0.45]).reshape(1, 1, 1, 3), image, padding=((0, 0), (1, 1)))
    outer = Convolution(-taps.reshape(1, 1, 1, 9), image, padding=((0, 0), (4, 4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_search, "DENSE_WIDTH", 0)
        bound = joint_bound(Identity(image), inner, outer, slopes=(0.98, 1.0), effort=TINY)
    block = ResidualBlock(Identity(image), (inner, outer), ((0.98, 1.0),))
    attained = mask_ascent(block, steps=60).value
    assert attained > 0.9
    assert all(attained <= value for value in bound.candidates.values())
    assert joint_bound(Identity(image), inner, outer, slopes=(0.98, 1.0), effort=TINY).upper <= 1.1 * attained


def test_a_block_whose_parts_do_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="does not fit the shortcut"):
        joint_bound(Identity((3,)), Dense(normal(4, 3)), Dense(normal(2, 4)))
    with pytest.raises(InputError, match="activations between them"):
        branch_bound(Identity((3,)), [Dense(normal(3, 3))], slopes=[(0.0, 1.0)])
    with pytest.raises(InputError, match="groups of 2"):
        joint_bound(Identity((3,)), Dense(normal(5, 3)), Dense(normal(3, 5)), slopes=GroupSort(2))


def test_a_flattening_between_the_layers_falls_back_to_a_valid_bound() -> None:
    inner = Composition((Convolution(normal(40, 3, 3, 3), (3, 5, 5), padding=1), Identity((40, 5, 5), (1000,))))
    bound = joint_bound(Dense(normal(4, 75), (3, 5, 5)), inner, Dense(normal(4, 1000, seed=1)), effort=TINY)
    assert bound.upper == bound.candidates["textbook"]


def resnet_2b_blocks(shared: Path) -> list[tuple[LinearMap, Convolution, Convolution]]:
    onnx = pytest.importorskip("onnx")
    file = onnx.load(shared / "models" / "resnet_2b.onnx")
    weights = {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in file.graph.initializer}

    def conv(name: str, image: tuple[int, ...], stride: int, pad: int) -> Convolution:
        return Convolution(weights[f"layer1.{name}.weight"], image, stride, pad)

    first, second = (8, 16, 16), (16, 8, 8)
    return [
        (conv("0.shortcut.0", first, 2, 0), conv("0.conv1", first, 2, 1), conv("0.conv2", second, 1, 1)),
        (Identity(second), conv("1.conv1", second, 1, 1), conv("1.conv2", second, 1, 1)),
    ]


def test_the_blocks_of_resnet_2b_reach_the_published_table(shared: Path) -> None:
    bounds = [joint_bound(*block, effort=2.0) for block in resnet_2b_blocks(shared)]
    assert 3.755 <= bounds[0].upper <= 4.15
    assert 5.542 <= bounds[1].upper <= 6.0
    assert bounds[0].lower >= 3.65
    assert bounds[1].lower >= 5.5
