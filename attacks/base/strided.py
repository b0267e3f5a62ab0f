"""Cheaper gradients of strided convolutions with respect to the images; their forward pass is untouched.

oneDNN's input gradient of a first layer with stride and three channels costs several times its forward pass: a quarter
of a whole step on small residual networks. The gradient of a convolution with stride s is a plain convolution of what
arrives, with the kernel's taps sorted by their residue modulo s, whose s^2 groups of channels are then interleaved
(the sub-pixel view of Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?").
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

FEW_CHANNELS = 4  # the library's own gradient is slow up to here; with more channels it is as fast as the plain form


@contextmanager
def cheaper_gradients(model: nn.Module) -> Iterator[int]:
    """Inside, the model's strided convolutions of images on the CPU have the cheaper gradient; yields how many.

    Only an `nn.Conv2d` as the library defines it, whose parameters need no gradient, is met, and only where its output
    is the convolution's itself and not what another hook made of it.
    """
    with ExitStack() as hooks:
        layers = [layer for layer in model.modules() if _suited(layer)]
        for layer in layers:
            hooks.callback(layer.register_forward_hook(_Cheaper()).remove)
        yield len(layers)


def _suited(layer: nn.Module) -> bool:
    """Few channels, no groups, equal stride and padding both ways, zeros around."""
    if type(layer) is not nn.Conv2d or layer.in_channels > FEW_CHANNELS or layer.groups > 1:
        return False
    plain = set(layer.dilation) == {1} and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return plain and len(set(layer.stride)) == len(set(layer.padding)) == 1 and layer.stride[0] > 1


class _Cheaper:
    """A forward hook that exchanges the gradient of a convolution with respect to its input."""

    def __init__(self) -> None:
        self._known: tuple[Tensor, int, Tensor] | None = None  # a weight, its version and the gradient's kernel

    def __call__(self, layer: nn.Conv2d, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        own = type(output.grad_fn).__name__ == "ConvolutionBackward0" and output.is_cpu and not output.is_complex()
        if not own or len(inputs) != 1 or inputs[0].ndim != 4 or inputs[0].dtype != output.dtype:
            return None
        if layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad):
            return None
        stride, padding = layer.stride[0], int(layer.padding[0])
        kernel = self._kernel(layer.weight, stride, padding)
        value: Tensor = _Strided.apply(inputs[0], output.detach(), kernel, layer.kernel_size, stride, padding)
        return value

    def _kernel(self, weight: Tensor, stride: int, padding: int) -> Tensor:
        """The gradient's kernel, made once for a weight that stays as it is."""
        if self._known is None or self._known[0] is not weight or self._known[1] != weight._version:
            self._known = (weight, weight._version, gradient_kernel(weight.detach(), stride, padding))
        return self._known[2]


def _blocks(size: int, stride: int, padding: int) -> tuple[int, int]:
    """First and last block of `stride` pixels, relative to an output's own, that its `size` taps touch."""
    return -padding // stride, (size - 1 - padding) // stride


def gradient_kernel(weight: Tensor, stride: int, padding: int) -> Tensor:
    """From weight (O, I, h, w): the kernel (I s^2, O, blocks, blocks) whose channels are the residues of the taps."""
    sides = []
    for size in reversed(weight.shape[2:]):
        first, last = _blocks(size, stride, padding)
        before = -padding - first * stride
        sides += [before, (last - first + 1) * stride - size - before]
    taps = pad(weight, sides)
    out, channels, height, width = taps.shape
    taps = taps.reshape(out, channels, height // stride, stride, width // stride, stride).flip(2, 4)
    return taps.permute(1, 3, 5, 0, 2, 4).flatten(0, 2).contiguous()


def _interleaved(values: Tensor, stride: int) -> Tensor:
    """(N, C s^2, h, w) to (N, C, h s, w s): pixel_shuffle in two copies along rows, which a CPU does faster."""
    count, channels, height, width = values.shape
    parts = values.reshape(count, channels // stride**2, stride, stride, height, width)
    rows = torch.stack(parts.unbind(3), dim=-1)
    return torch.stack(rows.unbind(2), dim=3).reshape(count, -1, height * stride, width * stride)


class _Strided(torch.autograd.Function):
    """The output of a convolution of `image`, whose gradient with respect to the image uses `gradient_kernel`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        image: Tensor, output: Tensor, kernel: Tensor, size: tuple[int, ...], stride: int, padding: int
    ) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, _, kernel, ctx.size, ctx.stride, ctx.padding = inputs
        ctx.shape = image.shape
        ctx.save_for_backward(kernel)

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        (kernel,) = ctx.saved_tensors
        sides = []
        for extent, out, size in zip(ctx.shape[:1:-1], arriving.shape[:1:-1], reversed(ctx.size), strict=True):
            first, last = _blocks(size, ctx.stride, ctx.padding)
            sides += [last, -(-extent // ctx.stride) - first - out]
        gradient = _interleaved(conv2d(pad(arriving, sides), kernel), ctx.stride)
        return gradient[:, :, : ctx.shape[2], : ctx.shape[3]], None, None, None, None, None
