"""The cheaper gradient of strided convolutions is the gradient, and applies only where it is meant to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustres.attacks import PGD
from robustres.attacks.base.strided import cheaper_gradients
from robustres.threat import ThreatModel


class OwnConvolution(nn.Conv2d):
    """What a subclass computes is not known."""


def gradient(layer: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    value = layer(leaf)
    weights = torch.linspace(-1, 1, value[0].numel(), dtype=x.dtype).reshape(value.shape[1:])
    (found,) = torch.autograd.grad((value.square() * weights).sum(), leaf)
    return found


@settings(deadline=None, max_examples=60)
@given(
    stride=st.integers(2, 5),
    padding=st.integers(0, 4),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    channels=st.integers(1, 4),
    size=st.tuples(st.integers(7, 13), st.integers(7, 13)),
    bias=st.booleans(),
)
def test_it_is_the_gradient_for_any_stride_padding_kernel_and_size(
    stride: int, padding: int, kernel: tuple[int, int], channels: int, size: tuple[int, int], bias: bool
) -> None:
    layer = nn.Conv2d(channels, 3, kernel, stride=stride, padding=padding, bias=bias).double().requires_grad_(False)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    with cheaper_gradients(layer) as met:
        found = gradient(layer, x)
    assert met == 1
    torch.testing.assert_close(found, gradient(layer, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(8, 4, 3, stride=2),
        nn.Conv2d(3, 4, 3, stride=(2, 1)),
        nn.Conv2d(3, 3, 3, stride=2, groups=3),
        nn.Conv2d(3, 4, 3, stride=2, dilation=2),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular"),
        nn.Conv2d(3, 4, 3, padding="same"),
        OwnConvolution(3, 4, 3, stride=2),
    ],
)
def test_other_convolutions_are_left_alone(layer: nn.Conv2d) -> None:
    layer.requires_grad_(False)
    x = torch.randn(2, layer.in_channels, 9, 9)
    with cheaper_gradients(layer) as met:
        found = gradient(layer, x)
    assert not met
    assert torch.equal(found, gradient(layer, x))


def test_what_another_hook_made_of_the_output_keeps_its_own_gradient() -> None:
    layer = nn.Conv2d(3, 4, 3, stride=2).requires_grad_(False)
    x = torch.randn(2, 3, 9, 9)
    layer.register_forward_hook(lambda _layer, _inputs, output: output * 3)
    expected = gradient(layer, x)
    with cheaper_gradients(layer):
        torch.testing.assert_close(gradient(layer, x), expected)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_parameters_that_need_a_gradient_get_theirs(name: str) -> None:
    layer = nn.Conv2d(3, 4, 3, stride=2).requires_grad_(False)
    parameter = getattr(layer, name).requires_grad_(True)
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    expected = torch.autograd.grad(layer(x).square().sum(), parameter)
    with cheaper_gradients(layer):
        torch.testing.assert_close(torch.autograd.grad(layer(x).square().sum(), parameter), expected)


def test_no_hook_stays_and_two_at_once_do_no_harm() -> None:
    layer = nn.Conv2d(3, 4, 3, stride=2).requires_grad_(False)
    x = torch.randn(2, 3, 9, 9)
    expected = gradient(layer, x)

    def cut_off() -> None:
        with cheaper_gradients(layer), cheaper_gradients(layer):
            torch.testing.assert_close(gradient(layer, x), expected)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert not layer._forward_hooks


def test_a_kernel_that_changes_is_read_again() -> None:
    layer = nn.Conv2d(3, 4, 3, stride=2).requires_grad_(False)
    x = torch.randn(1, 3, 8, 8)
    with cheaper_gradients(layer):
        gradient(layer, x)
        layer.weight.mul_(2)
        found = gradient(layer, x)
    torch.testing.assert_close(found, gradient(layer, x))


def test_second_derivatives_and_function_transforms_go_through_it() -> None:
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1).double().requires_grad_(False)
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    with cheaper_gradients(layer):
        assert torch.autograd.gradgradcheck(lambda image: layer(image).pow(3), x)
        per_image = torch.func.vmap(torch.func.grad(lambda image: layer(image[None]).pow(3).sum()))(x.detach())
    (together,) = torch.autograd.grad(layer(x).pow(3).sum(), x)
    torch.testing.assert_close(per_image, together)


def test_an_attack_finds_the_same_with_and_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    model = model.double().eval()
    x = torch.rand(10, 3, 8, 8, dtype=torch.float64)
    y = model(x).argmax(dim=1)
    attack = PGD(ThreatModel("linf", 0.02))
    ours = attack(model, x, y)
    monkeypatch.setattr("robustres.attacks.base.strided.FEW_CHANNELS", 0)
    plain = attack(model, x, y)
    assert torch.equal(ours.fooled, plain.fooled)
    torch.testing.assert_close(ours.examples, plain.examples)
