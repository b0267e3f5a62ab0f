"""Linear maps that copy coordinates (permute, slice, pad, repeat) or scale each by its own factor."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robustres.certify.maps.linear_map import Identity, LinearMap, Shape, as_weight, exponent_of, magnitude_of
from robustres.certify.proof.largest_singular_value import times_power_of_two
from robustres.errors import InputError


@dataclass(frozen=True, eq=False)
class Selection(LinearMap):
    """Output coordinate i is the input coordinate `index[i]`, or 0 if `index[i]` is -1.

    Permutations, slices, paddings, repetitions and nearest-neighbour resizing are of this kind. The norm is known
    exactly: the squared norm is the largest number of times that one input coordinate is copied.
    """

    index: Tensor
    in_shape: Shape
    out_shape: Shape
    cancels = False
    forward_roundings = 0

    @property
    def copies(self) -> int:
        """The largest number of times that one input coordinate appears in the output; the square of the norm."""
        used = self.index[self.index >= 0]
        return int(torch.bincount(used).max()) if used.numel() else 0

    def __call__(self, x: Tensor) -> Tensor:
        padded = torch.cat([x.reshape(len(x), -1), x.new_zeros(len(x), 1)], dim=1)
        return padded[:, self.index].reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        gathered = y.new_zeros(len(y), self.in_size + 1)
        place = torch.where(self.index < 0, self.in_size, self.index)
        return gathered.index_add(1, place, y.reshape(len(y), -1))[:, :-1].reshape(-1, *self.in_shape)

    def dense(self) -> Tensor:
        kept = self.index >= 0
        matrix = torch.zeros(len(self.index), self.in_size, dtype=torch.float64, device=self.device)
        matrix[kept.nonzero()[:, 0], self.index[kept]] = 1.0
        return matrix

    def absolute(self) -> "Selection":
        return self

    def normalised(self) -> tuple[LinearMap, int]:
        return self, 0

    @property
    def roundings(self) -> int:
        return self.copies


def rearranged(numbers: Tensor, in_shape: Shape) -> LinearMap:
    """The map that takes input coordinate `numbers[i]` to position i; a reshape if this keeps the order."""
    index, out_shape = numbers.flatten(), tuple(numbers.shape)
    if torch.equal(index, torch.arange(math.prod(in_shape), device=index.device)):
        return Identity(in_shape, out_shape)
    return Selection(index, in_shape, out_shape)


@dataclass(frozen=True, eq=False)
class Diagonal(LinearMap):
    """Each coordinate times its own factor; factors (C,) belong to the channels. The norm is the largest |factor|.

    factors: of the shape of the first axes of `in_shape`, by default of all. seen: their relative roundings.
    """

    factors: Tensor
    in_shape: Shape = None  # type: ignore[assignment]
    seen: int = 0
    out_shape: Shape = field(init=False)
    cancels = False
    forward_roundings = 9  # a network that normalises computes the factors as it runs

    def __post_init__(self) -> None:
        factors = as_weight(self.factors, "factors")
        shape = tuple(factors.shape if self.in_shape is None else self.in_shape)
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "in_shape", shape)
        object.__setattr__(self, "out_shape", shape)
        if factors.shape != shape[: factors.ndim]:
            raise InputError(f"factors {tuple(factors.shape)} cannot scale the coordinates of {shape}")

    @property
    def of_channels(self) -> bool:
        """Whether there is one factor for each channel."""
        return self.factors.ndim == 1

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.factors.reshape(*self.factors.shape, *[1] * (len(self.in_shape) - self.factors.ndim))

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def dense(self) -> Tensor:
        return torch.diag(self.factors.flatten().repeat_interleave(self.in_size // self.factors.numel()))

    def absolute(self) -> "Diagonal":
        return Diagonal(magnitude_of(self.factors, self.seen), self.in_shape)

    def normalised(self) -> tuple[LinearMap, int]:
        exponent = exponent_of(self.factors)
        return (replace(self, factors=times_power_of_two(self.factors, -exponent)), exponent) if exponent else (self, 0)

    @property
    def roundings(self) -> int:
        return 1 + self.seen
