"""Shift, mix, fold: blocks for images that lose no information, neither at the borders nor in the activation.

During training, the images of a batch are innermost in memory, (C, H, W, N) behind the usual (N, C, H, W): a shift is
then a contiguous copy and a layer one matrix product. In evaluation mode the same functions are plain operations.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from robustres.certify.proof.bound import Bound
from robustres.errors import ModelError
from robustres.models.blocks.orthogonal import SemiOrthogonal
from robustres.models.blocks.site import Site
from robustres.models.blocks.stated import norm_of
from robustres.models.constraints.activations import HalfAbs, activation

START = 0.01  # size of the random rotation with which a block is initialised
SHIFTS = ((1, 1), (1, -1), (2, 1), (2, -1))  # unbatched axis and direction, an eighth of the channels each


class ShiftBlock(nn.Module):
    """act(Q shift(x) + B): Q orthogonal over the channels, B a learnt bias for every coordinate.

    An eighth of the channels each (rounded down) moves by one pixel up, down, left and right, circularly; B carries the
    position, which a circular shift does not preserve. Lipschitz constant: exactly 1, since every factor before the
    activation is orthogonal (after LipNeXt, Hu, Hu and Fredrikson 2026).
    """

    budget = 1.0

    def __init__(self, site: Site) -> None:
        super().__init__()
        if site.stride != 1:
            raise ModelError("a shift block keeps its size; downsample with the stem or with widths")
        self.mix = nn.Conv2d(site.channels, site.channels, 1, bias=False)
        free = START * torch.randn(site.channels, site.channels)
        with torch.no_grad():
            self.mix.weight.copy_(torch.matrix_exp(free - free.T)[:, :, None, None])
        parametrize.register_parametrization(self.mix, "weight", SemiOrthogonal(), unsafe=True)
        self.bias = nn.Parameter(torch.zeros(site.shape))
        self.activation = activation(site.activation, site.channels)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            out: Tensor = self.activation(self.mix(shifted(x, 1)) + self.bias)
            return out
        inner = _Shift.apply(x.permute(1, 2, 3, 0))
        matrix = self.mix.weight.flatten(1)
        return mixed_innermost(matrix, inner.flatten(1), self.bias, inner.shape[1:3], self.activation)

    def stated_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """|Q| for the current weights; a shift is a permutation."""
        return norm_of(self.mix, input_shape)


def shifted(x: Tensor, axis: int) -> Tensor:
    """The features with an eighth of the channels each rolled by one pixel in the four directions.

    axis: of the channels; height and width follow it.
    """
    eighth = x.shape[axis] // 8
    if not eighth:
        return x
    *moving, rest = torch.split(x, [eighth] * len(SHIFTS) + [x.shape[axis] - len(SHIFTS) * eighth], dim=axis)
    rolled = [part.roll(step, axis + side) for part, (side, step) in zip(moving, SHIFTS, strict=True)]
    return torch.cat([*rolled, rest], dim=axis)


def _shift_innermost(x: Tensor, way: int) -> Tensor:
    """`shifted` of features (C, H, W, N), or with way = -1 its inverse, in a single pass."""
    eighth = x.shape[0] // 8
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for number, (axis, step) in enumerate(SHIFTS):
        part = slice(number * eighth, (number + 1) * eighth)
        to, source, side = out[part], x[part], x.shape[axis]
        ahead = (way * step) % side
        to.narrow(axis, ahead, side - ahead).copy_(source.narrow(axis, 0, side - ahead))
        to.narrow(axis, 0, ahead).copy_(source.narrow(axis, side - ahead, ahead))
    out[len(SHIFTS) * eighth :] = x[len(SHIFTS) * eighth :]
    return out


class _Shift(torch.autograd.Function):
    """`_shift_innermost`; its gradient is shifted back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _shift_innermost(x, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _shift_innermost(gradients[0], -1)


def mixed_innermost(matrix: Tensor, columns: Tensor, bias: Tensor, size: Any, act: nn.Module) -> Tensor:
    """act(matrix columns + bias) as (N, C, H, W) with the images innermost.

    columns: (in, H W N). bias: (C, H, W), or (C,) for all positions. size: (H, W).
    """
    half = len(matrix) // 2 if isinstance(act, HalfAbs) else 0
    if torch.is_autocast_enabled(columns.device.type):
        kind = torch.get_autocast_dtype(columns.device.type)
        matrix, columns = matrix.to(kind), columns.to(kind)
    out = _MixedInnermost.apply(matrix, columns, bias, half).reshape(len(matrix), *size, -1).permute(3, 0, 1, 2)
    return out if half else cast(Tensor, act(out))


class _MixedInnermost(torch.autograd.Function):
    """matrix columns + bias, then |.| on the first `half` rows: a product and as few passes as possible."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, columns: Tensor, bias: Tensor, half: int) -> Tensor:
        out = matrix @ columns
        out.view(len(out), bias.shape[1:].numel(), -1).add_(bias.reshape(len(out), -1, 1).to(out.dtype))
        signs = out[:half].sign()
        out[:half].abs_()
        ctx.save_for_backward(matrix, columns, signs)
        ctx.bias = bias.shape, bias.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        matrix, columns, signs = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        if len(signs):
            gradient = gradient.clone()  # a fresh tensor, which may be changed in place
            gradient[: len(signs)].mul_(signs)
        shape, kind = ctx.bias
        positions = shape[1:].numel()
        summed = gradient.view(len(gradient), positions, -1).sum(dim=2).to(kind)
        back = matrix.T @ gradient if ctx.needs_input_grad[1] else None
        return gradient @ columns.T, back, summed.reshape(shape), None


class WindowConvolution(nn.Conv2d):
    """A convolution of disjoint windows (stride = kernel, no padding); in training one product, images innermost."""

    def __init__(self, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__(in_channels, out_channels, side, side)

    def forward(self, x: Tensor) -> Tensor:
        return self.activated(x, nn.Identity()) if self.training else super().forward(x)

    def activated(self, x: Tensor, act: nn.Module) -> Tensor:
        """The activation of the convolution, for training."""
        side = self.kernel_size[0]
        channels, height, width, count = (inner := x.permute(1, 2, 3, 0)).shape
        windows = inner.reshape(channels, height // side, side, width // side, side, count)
        windows = windows.permute(0, 2, 4, 1, 3, 5).reshape(channels * side * side, -1)
        assert self.bias is not None
        size = (height // side, width // side)
        return mixed_innermost(self.weight.flatten(1), windows, self.bias, size, act)


class ShiftTransition(nn.Module):
    """act(W x + b), W a 2 x 2 convolution of stride 2 with orthonormal rows or columns, to any number of channels.

    Lipschitz constant: 1, since the windows do not overlap, so that W acts on each of them as one matrix.
    """

    budget = 1.0

    def __init__(self, site: Site, channels: int) -> None:
        super().__init__()
        if any(side % 2 for side in site.size):
            raise ModelError(f"images of odd side cannot be halved, got {site.size[0]} x {site.size[1]}")
        self.convolution = WindowConvolution(site.channels, channels, 2)
        parametrize.register_parametrization(self.convolution, "weight", SemiOrthogonal())
        self.activation = activation(site.activation, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.convolution.activated(x, self.activation)
        out: Tensor = self.activation(self.convolution(x))
        return out

    def stated_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """|W| for the current weights on features of that shape."""
        return norm_of(self.convolution, input_shape)


class OrthogonalDense(nn.Module):
    """act(W x + b) on vectors, W a matrix with orthonormal rows, or columns if it is tall. Lipschitz constant: 1."""

    budget = 1.0

    def __init__(self, features: int, width: int, site: Site) -> None:
        super().__init__()
        self.layer = nn.Linear(features, width)
        parametrize.register_parametrization(self.layer, "weight", SemiOrthogonal())
        self.activation = activation(site.activation, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(functional.linear(x, self.layer.weight, self.layer.bias))
        return out

    def stated_bound(self, input_shape: tuple[int, ...]) -> Bound:
        """|W| for the current weights."""
        return norm_of(self.layer, input_shape)
