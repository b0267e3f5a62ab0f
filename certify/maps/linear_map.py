"""Linear maps between unbatched tensors in float64: the base class, matrices, and sums, compositions and multiples."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise

import torch
from torch import Tensor

from robustres.certify.proof.largest_singular_value import times_power_of_two
from robustres.errors import InputError
from robustres.numerics import gamma

Shape = tuple[int, ...]
FEW = 16  # binary exponents up to this size are left in the weights


class LinearMap(ABC):
    """A linear map from tensors of `in_shape` to tensors of `out_shape`, applied to batches of them.

    `map(x)` takes (B, *in_shape) and returns (B, *out_shape); `map.adjoint(y)` is the transpose. Both are exact up to
    float64 rounding and differentiable. `outer @ inner` composes, `a + b` adds, `2.0 * a` scales.

    The exact map A is defined by the network's own weights, regardless of the roundings of the stored weights (folding
    multiplies weights). Every computed product and the computed dense matrix C satisfy, entry by entry,
        |C - A| <= gamma(ALGORITHM_FACTOR * roundings) * absolute()    and    |A| <= absolute().

    Every subclass must define all abstract members; none of them has a default. The questions of higher packages
    (`structural_norm`, `passage`, `polynomial`, `wrapped`) match its kind and raise if they do not know it.
    """

    in_shape: Shape
    out_shape: Shape

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The map applied to a batch (B, *in_shape)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """The transposed map applied to a batch (B, *out_shape)."""

    def dense(self) -> Tensor:
        """The matrix (out_size, in_size) of the map on flattened tensors: the map, or its adjoint, of unit vectors."""
        if self.in_size <= self.out_size:
            eye = torch.eye(self.in_size, dtype=torch.float64, device=self.device)
            return as_rows(self(eye.reshape(-1, *self.in_shape))).T
        eye = torch.eye(self.out_size, dtype=torch.float64, device=self.device)
        return as_rows(self.adjoint(eye.reshape(-1, *self.out_shape)))

    @abstractmethod
    def absolute(self) -> "LinearMap":
        """A map whose entries are at or above the absolute values of those of the exact map; for B A, |B| |A|."""

    @abstractmethod
    def normalised(self) -> tuple["LinearMap", int]:
        """A map with weights of about 1, and k such that 2^k times it is this map, except for entries that are
        negligible.

        `UNDERFLOW` in `rounding` bounds this loss and that of products that underflow.
        """

    @property
    @abstractmethod
    def roundings(self) -> int:
        """Number of roundings of a coordinate of a product or of the adjoint, including those of the stored weights."""

    @property
    @abstractmethod
    def forward_roundings(self) -> int:
        """Number of roundings of an output coordinate when the network itself computes it from its weights."""

    @property
    @abstractmethod
    def cancels(self) -> bool:
        """Whether the entries of `absolute()` may be larger than the absolute values of the map's entries."""

    @property
    def device(self) -> torch.device:
        """The device of the map's tensors and of its arguments; the CPU if it has no tensors."""
        return common_device([self])

    @property
    def in_size(self) -> int:
        """Number of input coordinates."""
        return math.prod(self.in_shape)

    @property
    def out_size(self) -> int:
        """Number of output coordinates."""
        return math.prod(self.out_shape)

    def __matmul__(self, inner: "LinearMap") -> "LinearMap":
        return Composition((inner, self))

    def __add__(self, other: "LinearMap") -> "LinearMap":
        return Sum((self, other))

    def __rmul__(self, factor: float) -> "LinearMap":
        return Scaled(float(factor), self)


def as_rows(values: Tensor) -> Tensor:
    """(B, *shape) as (B, size), including samples of one number, (B,), and empty batches."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def common_device(maps: Iterable[LinearMap]) -> torch.device:
    """The device of the maps that hold tensors; maps without tensors follow their neighbours."""
    devices = (tensor.device for map_ in maps for tensor in _tensors(map_))
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def _tensors(map_: LinearMap) -> Iterator[Tensor]:
    """All tensors of a map and of its parts."""
    for value in vars(map_).values():
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, Tensor):
                yield part
            elif isinstance(part, LinearMap):
                yield from _tensors(part)


def in_precision(map_: LinearMap, dtype: torch.dtype) -> LinearMap:
    """A copy of the map with tensors of another precision, for searches only, never for bounds."""
    clone = copy.copy(map_)
    for part in fields(map_):  # type: ignore[arg-type]
        object.__setattr__(clone, part.name, _in_precision(getattr(map_, part.name), dtype))
    return clone


def _in_precision(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, Tensor):
        return value.detach().to(dtype) if value.is_floating_point() else value
    if isinstance(value, LinearMap):
        return in_precision(value, dtype)
    if isinstance(value, tuple | list) and any(isinstance(part, LinearMap) for part in value):
        return tuple(_in_precision(part, dtype) for part in value)
    return value


def unanswered(question: str, map_: LinearMap) -> TypeError:
    """The error of a function that does not know a kind of map."""
    return TypeError(f"{type(map_).__name__} has no implementation of {question}; add a case for this kind of map")


def magnitude_of(stored: Tensor, seen: int) -> Tensor:
    """At or above the absolute values of weights that are known up to `seen` relative roundings."""
    return stored.detach().abs() * (1 + gamma(seen + 2)) if seen else stored.detach().abs()


def exponent_of(values: Tensor) -> int:
    """The exponent of the power of two above the largest absolute value; 0 if that is about 1 or if all are 0."""
    largest = float(values.detach().abs().max()) if values.numel() else 0.0
    exponent = math.frexp(largest)[1]
    return exponent if largest and abs(exponent) > FEW else 0


def as_weight(values: Tensor, name: str) -> Tensor:
    """The values in float64; raises InputError that names a weight that is not finite."""
    weight = values.to(torch.float64)
    if not bool(torch.isfinite(weight.detach()).all()):
        raise InputError(f"the {name} contains NaN or infinite values, so it has no norm; repair the weights first")
    return weight


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


@dataclass(frozen=True, eq=False)
class Composition(LinearMap):
    """A composition; `parts` are in the order in which they are applied."""

    parts: Sequence[LinearMap]
    in_shape: Shape = field(init=False)
    out_shape: Shape = field(init=False)
    cancels = True

    def __post_init__(self) -> None:
        parts = tuple(part for map_ in self.parts for part in (map_.parts if type(map_) is Composition else (map_,)))
        for inner, outer in pairwise(parts):
            if inner.out_shape != outer.in_shape:
                raise InputError(f"a map to {inner.out_shape} cannot be followed by a map from {outer.in_shape}")
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "in_shape", parts[0].in_shape)
        object.__setattr__(self, "out_shape", parts[-1].out_shape)

    def __call__(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for part in reversed(self.parts):
            y = part.adjoint(y)
        return y

    def absolute(self) -> "Composition":
        return Composition([part.absolute() for part in self.parts])

    def normalised(self) -> tuple[LinearMap, int]:
        parts, exponents = zip(*(part.normalised() for part in self.parts), strict=True)
        return (Composition(parts), sum(exponents)) if any(exponents) else (self, 0)

    @property
    def roundings(self) -> int:
        return sum(part.roundings for part in self.parts)

    @property
    def forward_roundings(self) -> int:
        return sum(part.forward_roundings for part in self.parts)


@dataclass(frozen=True, eq=False)
class Sum(LinearMap):
    """A sum of maps between the same shapes, such as a shortcut and a linear branch."""

    terms: Sequence[LinearMap]
    in_shape: Shape = field(init=False)
    out_shape: Shape = field(init=False)
    cancels = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_shape", self.terms[0].in_shape)
        object.__setattr__(self, "out_shape", self.terms[0].out_shape)
        for term in self.terms:
            if (term.in_shape, term.out_shape) != (self.in_shape, self.out_shape):
                raise InputError(
                    f"a map {term.in_shape} -> {term.out_shape} cannot be added to {self.in_shape} -> {self.out_shape}"
                )

    def __call__(self, x: Tensor) -> Tensor:
        total = self.terms[0](x)
        for term in self.terms[1:]:
            total = total + term(x)
        return total

    def adjoint(self, y: Tensor) -> Tensor:
        total = self.terms[0].adjoint(y)
        for term in self.terms[1:]:
            total = total + term.adjoint(y)
        return total

    def absolute(self) -> "Sum":
        return Sum([term.absolute() for term in self.terms])

    def normalised(self) -> tuple[LinearMap, int]:
        found = [term.normalised() for term in self.terms]
        if not any(exponent for _, exponent in found):
            return self, 0
        top = max(exponent for _, exponent in found)
        return Sum([term if k == top else Scaled(math.ldexp(1.0, k - top), term) for term, k in found]), top

    @property
    def roundings(self) -> int:
        return max(term.roundings for term in self.terms) + len(self.terms)

    @property
    def forward_roundings(self) -> int:
        return max(term.forward_roundings for term in self.terms) + len(self.terms)


@dataclass(frozen=True, eq=False)
class Scaled(LinearMap):
    """A number times a map; `seen`: relative roundings of the number."""

    factor: float
    map: LinearMap
    seen: int = 0
    in_shape: Shape = field(init=False)
    out_shape: Shape = field(init=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.factor):
            raise InputError(f"a map can only be scaled by a finite number, got {self.factor}")
        object.__setattr__(self, "in_shape", self.map.in_shape)
        object.__setattr__(self, "out_shape", self.map.out_shape)

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * self.map(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.map.adjoint(y)

    def dense(self) -> Tensor:
        return self.factor * self.map.dense()

    def absolute(self) -> "Scaled":
        up = 1 + gamma(self.seen + 2) if self.seen else 1.0
        return Scaled(abs(self.factor) * up, self.map.absolute())

    def normalised(self) -> tuple[LinearMap, int]:
        (mantissa, shift), (inner, exponent) = math.frexp(self.factor), self.map.normalised()
        if abs(shift) <= FEW:
            return (replace(self, map=inner), exponent) if exponent else (self, 0)
        return Scaled(mantissa, inner, self.seen), exponent + shift

    @property
    def roundings(self) -> int:
        return self.map.roundings + 1 + self.seen

    @property
    def forward_roundings(self) -> int:
        return self.map.forward_roundings + 2

    @property
    def cancels(self) -> bool:
        return self.map.cancels
