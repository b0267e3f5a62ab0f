"""Two-dimensional convolutions, transposes, paddings and average pooling as linear maps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from robustres.certify.maps.coordinate_maps import Selection, rearranged
from robustres.certify.maps.linear_map import (
    Composition,
    Dense,
    LinearMap,
    Shape,
    as_weight,
    exponent_of,
    magnitude_of,
)
from robustres.certify.proof.largest_singular_value import times_power_of_two
from robustres.errors import InputError

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

MANY, WINDOWS = 16, 2**17  # images, and numbers of all their windows at a time


def _slow(x: Tensor) -> bool:
    return x.dtype == torch.float64 and x.device.type == "cpu" and not (x.requires_grad and torch.is_grad_enabled())


def pair(value: int | Sequence[int]) -> Pair:
    """The number twice, or the two given numbers."""
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)


def both_sides(padding: int | Sequence[int | Sequence[int]]) -> Padding:
    """((top, bottom), (left, right)) from p, (vertical, horizontal) or the four numbers.

    >>> both_sides((1, 2))
    ((1, 1), (2, 2))
    """
    if isinstance(padding, int):
        padding = (padding, padding)
    vertical, horizontal = padding
    return pair(vertical), pair(horizontal)


@dataclass(frozen=True, eq=False)
class Convolution(LinearMap):
    """The map of `torch.nn.functional.conv2d` (a cross-correlation), without bias, for one image size.

    weight: (C_out, C_in / groups, k_1, k_2). in_shape: (C_in, H, W). padding: ((top, bottom), (left, right)).
    circular: whether the padding repeats the image instead of zeros. seen: number of relative roundings of the weights.
    """

    weight: Tensor
    in_shape: Shape
    stride: Pair = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    circular: bool = False
    seen: int = 0
    out_shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", as_weight(self.weight, "convolution kernel"))
        object.__setattr__(self, "stride", pair(self.stride))
        object.__setattr__(self, "dilation", pair(self.dilation))
        object.__setattr__(self, "padding", both_sides(self.padding))
        self._check()
        image = tuple(
            (side + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1
            for side, pads, kernel, stride, dilation in zip(
                self.in_shape[1:], self.padding, self.weight.shape[2:], self.stride, self.dilation, strict=True
            )
        )
        if min(image) < 1:
            raise InputError(f"the kernel {tuple(self.weight.shape)} is larger than the padded image {self.in_shape}")
        object.__setattr__(self, "out_shape", (self.weight.shape[0], *image))

    def _check(self) -> None:
        if self.weight.ndim != 4 or len(self.in_shape) != 3:
            raise InputError(
                f"a convolution needs a kernel (out, in, k1, k2) and images (C, H, W), got "
                f"{tuple(self.weight.shape)} and {self.in_shape}"
            )
        if self.weight.shape[1] * self.groups != self.in_shape[0] or self.weight.shape[0] % self.groups:
            raise InputError(
                f"the kernel {tuple(self.weight.shape)} with {self.groups} groups does not fit {self.in_shape}"
            )
        if min(*self.stride, *self.dilation) < 1 or min(min(pads) for pads in self.padding) < 0:
            raise InputError("stride and dilation must be at least 1 and padding at least 0")

    def __call__(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = self.padding
        if top + bottom + left + right:
            x = functional.pad(x, (left, right, top, bottom), mode="circular" if self.circular else "constant")
        if len(x) >= MANY and _slow(x) and self.groups == 1 and self.dilation == (1, 1):
            return self._by_windows(x)
        return functional.conv2d(x, self.weight, None, self.stride, 0, self.dilation, self.groups)

    def _by_windows(self, padded: Tensor) -> Tensor:
        """One matrix product for the windows of several images, which conv2d forms image by image in float64."""
        found = padded.new_empty(len(padded), *self.out_shape)
        kernel, taps = self.weight.flatten(1), math.prod(self.weight.shape[1:])
        at_once = max(1, WINDOWS // (taps * math.prod(self.out_shape[1:])))
        (high, wide), (down, right) = self.weight.shape[2:], self.stride
        for start in range(0, len(padded), at_once):
            images = padded[start : start + at_once]
            windows = images.unfold(2, high, down).unfold(3, wide, right).permute(1, 4, 5, 0, 2, 3)
            answers = (kernel @ windows.reshape(taps, -1)).reshape(len(kernel), len(images), *self.out_shape[1:])
            found[start : start + at_once] = answers.transpose(0, 1)
        return found

    def adjoint(self, y: Tensor) -> Tensor:
        padded = functional.conv_transpose2d(y, self.weight, None, self.stride, 0, 0, self.groups, self.dilation)
        (top, bottom), (left, right) = self.padding
        _, height, width = self.in_shape
        missing = (height + top + bottom - padded.shape[2], width + left + right - padded.shape[3])
        padded = functional.pad(padded, (0, missing[1], 0, missing[0]))  # positions not read by any output
        if self.circular:
            return self.pad().adjoint(padded)
        return padded[:, :, top : top + height, left : left + width]

    def absolute(self) -> "Convolution":
        return replace(self, weight=magnitude_of(self.weight, self.seen), seen=0)

    def normalised(self) -> tuple[LinearMap, int]:
        exponent = exponent_of(self.weight)
        return (replace(self, weight=times_power_of_two(self.weight, -exponent)), exponent) if exponent else (self, 0)

    @property
    def roundings(self) -> int:
        rows, columns, *kernel = self.weight.shape
        pads = self.pad().roundings if self.circular else 0
        return math.prod(kernel) * max(rows // self.groups, columns) + pads + self.seen

    @property
    def forward_roundings(self) -> int:
        return math.prod(self.weight.shape[1:])

    @property
    def cancels(self) -> bool:
        return self.circular  # taps of opposite signs may read the same pixel

    def pad(self) -> Selection:
        """The circular padding alone, as a separate linear map."""
        return padded(self.in_shape, self.padding, "circular", self.device)

    def unpadded(self) -> "Convolution":
        """The same kernel on the padded image; `unpadded() @ pad()` is the whole map."""
        image = tuple(side + sum(pads) for side, pads in zip(self.in_shape[1:], self.padding, strict=True))
        return Convolution(
            self.weight,
            (self.in_shape[0], *image),
            self.stride,
            dilation=self.dilation,
            groups=self.groups,
            seen=self.seen,
        )


@dataclass(frozen=True, eq=False)
class Transposed(LinearMap):
    """The transpose of a map; that of a convolution is the map of `torch.nn.functional.conv_transpose2d`."""

    map: LinearMap
    in_shape: Shape = field(init=False)
    out_shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_shape", self.map.out_shape)
        object.__setattr__(self, "out_shape", self.map.in_shape)

    def __call__(self, x: Tensor) -> Tensor:
        return self.map.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.map(y)

    def dense(self) -> Tensor:
        return self.map.dense().T

    def absolute(self) -> "Transposed":
        return Transposed(self.map.absolute())

    def normalised(self) -> tuple[LinearMap, int]:
        inner, exponent = self.map.normalised()
        return (Transposed(inner), exponent) if exponent else (self, 0)

    @property
    def roundings(self) -> int:
        return self.map.roundings

    @property
    def forward_roundings(self) -> int:
        return self.map.roundings

    @property
    def cancels(self) -> bool:
        return self.map.cancels


def padded(in_shape: Shape, padding: Padding, mode: str, device: torch.device | str = "cpu") -> Selection:
    """The padding of images by `torch.nn.functional.pad` in one of its modes that repeat pixels."""
    numbers = torch.arange(math.prod(in_shape), dtype=torch.float64, device=device).reshape(1, *in_shape)
    index = functional.pad(numbers, (*padding[1], *padding[0]), mode=mode)[0].to(torch.int64)
    return Selection(index.flatten(), in_shape, tuple(index.shape))


def along_axis(matrix: Tensor, shape: Shape, axis: int, seen: int = 0) -> LinearMap:
    """A matrix (out, in) along one axis of a tensor: a 1 x 1 convolution between two permutations.

    seen: relative roundings of its entries.
    """
    others = (*shape[:axis], *shape[axis + 1 :])
    count, (length, width) = math.prod(others), matrix.shape
    if count == 1:
        return Dense(matrix, shape, (*shape[:axis], length, *shape[axis + 1 :]), seen)
    before = torch.arange(count * width, device=matrix.device).reshape(shape).movedim(axis, 0)
    after = torch.arange(count * length, device=matrix.device).reshape(length, *others).movedim(0, axis)
    inner = Convolution(matrix[:, :, None, None], (width, count, 1), seen=seen)
    return Composition((rearranged(before.reshape(inner.in_shape), shape), inner, rearranged(after, inner.out_shape)))


def separable(rows: Tensor, columns: Tensor, channels: int, seen: int = 0) -> LinearMap:
    """Each channel X (H, W) becomes rows X columns^T: uneven average pooling, resizing.

    seen: relative roundings of every product of an entry of `rows` and one of `columns`.
    """
    across = along_axis(columns, (channels, rows.shape[1], columns.shape[1]), 2, seen)
    return Composition((across, along_axis(rows, across.out_shape, 1)))


def average_pool(
    in_shape: Shape,
    kernel: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    *,
    divisor: int | None = None,
    device: torch.device | str = "cpu",
) -> Convolution:
    """`torch.nn.functional.avg_pool2d` where every sum is divided by the same number: a depthwise convolution."""
    kernels = pair(kernel)
    weight = torch.full((in_shape[0], 1, *kernels), 1 / (divisor or math.prod(kernels)), dtype=torch.float64)
    strides = kernels if stride is None else pair(stride)
    return Convolution(weight.to(device), in_shape, strides, both_sides(padding), groups=in_shape[0], seen=1)
