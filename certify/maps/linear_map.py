"""The linear maps of vectors: a matrix, and the identity."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustres.certify.maps.algebra import (
    Composition,
    LinearMap,
    Scaled,
    Shape,
    Sum,
    as_rows,
    as_weight,
    exponent_of,
    magnitude_of,
    unanswered,
    written_out,
)
from robustres.certify.proof.largest_singular_value import times_power_of_two
from robustres.errors import InputError

__all__ = [
    "Composition",
    "Dense",
    "Identity",
    "LinearMap",
    "Scaled",
    "Shape",
    "Sum",
    "as_rows",
    "as_weight",
    "exponent_of",
    "magnitude_of",
    "unanswered",
    "written_out",
]


@dataclass(frozen=True, eq=False)
class Dense(LinearMap):
    """The matrix (out, in), acting on the flattened input.

    seen: number of roundings of the stored entries, which lie within gamma(seen) * magnitude of the exact ones.
    magnitude: (out, in), at or above the absolute values of the exact entries; None if the roundings are relative to
    the entries.
    """

    matrix: Tensor
    in_shape: Shape = None  # type: ignore[assignment]
    out_shape: Shape = None  # type: ignore[assignment]
    seen: int = 0
    magnitude: Tensor | None = None

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2:
            raise InputError(f"a dense map needs a matrix (out, in), got the shape {tuple(self.matrix.shape)}")
        object.__setattr__(self, "matrix", as_weight(self.matrix, "matrix"))
        rows, columns = self.matrix.shape
        object.__setattr__(self, "in_shape", (columns,) if self.in_shape is None else tuple(self.in_shape))
        object.__setattr__(self, "out_shape", (rows,) if self.out_shape is None else tuple(self.out_shape))
        if self.in_size != columns or self.out_size != rows:
            raise InputError(f"a matrix ({rows}, {columns}) cannot map {self.in_shape} to {self.out_shape}")

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    def __call__(self, x: Tensor) -> Tensor:
        return (x.reshape(len(x), -1) @ self.matrix.T).reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return (y.reshape(len(y), -1) @ self.matrix).reshape(-1, *self.in_shape)

    def dense(self) -> Tensor:
        return self.matrix

    def absolute(self) -> "Dense":
        whole = magnitude_of(self.matrix, self.seen) if self.magnitude is None else self.magnitude
        return Dense(whole, self.in_shape, self.out_shape)

    def normalised(self) -> tuple[LinearMap, int]:
        exponent = exponent_of(self.matrix if self.magnitude is None else self.magnitude)
        if not exponent:
            return self, 0
        magnitude = None if self.magnitude is None else times_power_of_two(self.magnitude, -exponent)
        return replace(self, matrix=times_power_of_two(self.matrix, -exponent), magnitude=magnitude), exponent

    @property
    def roundings(self) -> int:
        return max(self.matrix.shape) + self.seen

    @property
    def forward_roundings(self) -> int:
        return self.matrix.shape[1]

    @property
    def cancels(self) -> bool:
        return self.magnitude is not None


@dataclass(frozen=True, eq=False)
class Identity(LinearMap):
    """x, or the same values in another shape of the same size (flatten, reshape)."""

    in_shape: Shape
    out_shape: Shape = None  # type: ignore[assignment]
    cancels = False
    forward_roundings = 0
    roundings = 0
    device = torch.device("cpu")

    def __post_init__(self) -> None:
        object.__setattr__(self, "out_shape", self.in_shape if self.out_shape is None else tuple(self.out_shape))
        if self.in_size != self.out_size:
            raise InputError(f"a reshape cannot map {self.in_shape} to {self.out_shape}")

    def __call__(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return y.reshape(-1, *self.in_shape)

    def dense(self) -> Tensor:
        return torch.eye(self.in_size, dtype=torch.float64)

    def absolute(self) -> "Identity":
        return self

    def normalised(self) -> tuple[LinearMap, int]:
        return self, 0
