"""Sliding windows over an image: sizes, strides, dilations and padding."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from robustres.errors import ModelError
from robustres.models.sources.onnx.call import Call

LARGEST = 2**24
Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Windows:
    """kernel, strides, dilations: along each axis of the image. pads: what is added before and after."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: Pads

    @property
    def reaches(self) -> tuple[int, ...]:
        """The extent of a window along each axis, from its first to its last element."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @classmethod
    def of(
        cls, call: Call, sides: Sequence[int], *, kernel: tuple[int, ...] | None = None, strict: bool = True
    ) -> "Windows":
        """Read the attributes of a node for an image of these sizes; `auto_pad` is resolved.

        strict: whether SAME padding is that of a convolution.
        """
        rank = len(sides)
        given = call.ints_attribute("kernel_shape")
        if kernel is not None and given is not None and tuple(given) != kernel:
            raise ModelError(f"has the kernel {given} but a weight of {kernel}")
        kernel = kernel if kernel is not None else tuple(given or ())
        strides = tuple(call.ints_attribute("strides") or (1,) * rank)
        dilations = tuple(call.ints_attribute("dilations") or (1,) * rank)
        pads = call.ints_attribute("pads") or [0] * (2 * rank)
        for numbers, least in ((kernel, 1), (strides, 1), (dilations, 1), (pads[:rank], 0), (pads[rank:], 0)):
            if len(numbers) != rank or not all(least <= number <= LARGEST for number in numbers):
                raise ModelError(f"has windows of {tuple(numbers)}, which do not fit an image of {tuple(sides)}")
        windows = cls(kernel, strides, dilations, tuple(zip(pads[:rank], pads[rank:], strict=True)))
        auto = call.attribute("auto_pad", "NOTSET")
        if auto == "VALID":
            return cls(kernel, strides, dilations, ((0, 0),) * rank)
        if auto not in {"SAME_UPPER", "SAME_LOWER"}:
            return windows
        if not strict:
            return windows
        totals = [
            max((-(-side // stride) - 1) * stride + reach - side, 0)
            for side, stride, reach in zip(sides, strides, windows.reaches, strict=True)
        ]
        smaller = [(total // 2, total - total // 2) for total in totals]
        return cls(kernel, strides, dilations, tuple(p if auto == "SAME_UPPER" else p[::-1] for p in smaller))


def static_sides(x: Tensor) -> tuple[int, ...]:
    """The sizes of an image after batch and channels, which must not depend on the batch size."""
    sides = tuple(x.shape[2:])
    if not all(isinstance(side, int) for side in sides):
        raise ModelError("slides windows over the batch axis")
    return sides


def padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float) -> Tensor:
    """Pad the last axes with one value."""
    flat = [number for pair in reversed(pads) for number in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x
