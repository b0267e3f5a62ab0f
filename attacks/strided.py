"""Cheaper gradients of strided convolutions with respect to the images; their forward pass is untouched.

oneDNN's input gradient of a first layer with stride and three channels costs several times its forward pass: a quarter
of a whole step on small residual networks. The gradient of a convolution with stride s is a plain convolution of what
arrives, with the kernel's taps sorted by their residue modulo s, whose s^2 groups of channels are then interleaved
(the sub-pixel view of Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?").
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, pixel_shuffle
from torch.overrides import TorchFunctionMode

FEW_CHANNELS = 4  # the library's own gradient is slow up to here; with more channels it is as fast as the plain form


class CheaperGradients(TorchFunctionMode):
    """Inside, strided convolutions on the CPU whose kernels need no gradient get the cheaper gradient.

    Works on the caller's model as it is, whoever calls the convolution. `met`: whether there was one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = False
        self._kernels: dict[tuple[int, int, int], tuple[nn.Parameter, int, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = kwargs or {}
        if func is torch.conv2d and (settings := _suited(*args, **arguments)) is not None:
            self.met = True
            image, weight, bias, stride, padding = settings
            kernel = self._kernel(weight, stride, padding)
            return _Strided.apply(image, weight, bias, kernel, stride, padding)
        return func(*args, **arguments)

    def _kernel(self, weight: Tensor, stride: int, padding: int) -> Tensor:
        """The gradient's kernel, made once for a parameter that stays as it is."""
        if not isinstance(weight, nn.Parameter):
            return gradient_kernel(weight, stride, padding)
        key = (id(weight), stride, padding)
        known = self._kernels.get(key)
        if known is None or known[1] != weight._version:
            known = self._kernels[key] = (weight, weight._version, gradient_kernel(weight.detach(), stride, padding))
        return known[2]


def _suited(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, int, int] | None:
    """The arguments of conv2d where the cheaper gradient applies: few channels, equal stride and padding both ways."""
    step, margin = _both_ways(stride), _both_ways(padding)
    plain = image.device.type == "cpu" and image.ndim == 4 and groups == 1 and _both_ways(dilation) == 1
    if not plain or step is None or step < 2 or margin is None or torch.is_autocast_enabled("cpu"):
        return None
    if image.shape[1] > FEW_CHANNELS:
        return None
    frozen = not weight.requires_grad and not (bias is not None and bias.requires_grad)
    if not (frozen and image.requires_grad and torch.is_grad_enabled()):
        return None
    return image, weight, bias, step, margin


def _both_ways(value: Any) -> int | None:
    """The number that holds for height and width, None where they differ or it is a word."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    return pair[0] if len(set(pair)) == 1 and isinstance(pair[0], int) else None


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


class _Strided(torch.autograd.Function):
    """conv2d(image, weight, bias) whose gradient with respect to the image uses `gradient_kernel`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        image: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor, stride: int, padding: int
    ) -> Tensor:
        return conv2d(image, weight, bias, stride=stride, padding=padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        image, weight, _, kernel, ctx.stride, ctx.padding = inputs
        ctx.shape, ctx.size = image.shape, weight.shape[2:]
        ctx.save_for_backward(kernel)

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor | None, ...]:
        (kernel,) = ctx.saved_tensors
        sides = []
        for extent, out, size in zip(ctx.shape[:1:-1], arriving.shape[:1:-1], reversed(ctx.size), strict=True):
            first, last = _blocks(size, ctx.stride, ctx.padding)
            sides += [last, -(-extent // ctx.stride) - first - out]
        gradient = pixel_shuffle(conv2d(pad(arriving, sides), kernel), ctx.stride)
        return gradient[:, :, : ctx.shape[2], : ctx.shape[3]], None, None, None, None, None
