"""The network as bounds are propagated through it: affine maps with their constants, scalar activations, sums."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from robustres.certify.maps.activation import Activation as ScalarFunction
from robustres.certify.maps.linear_map import LinearMap, Shape, in_precision
from robustres.certify.maps.rounding import ALGORITHM_FACTOR


@dataclass(frozen=True, eq=False)
class Input:
    """The image."""

    shape: Shape


@dataclass(frozen=True, eq=False)
class Affine:
    """map(x) + constant, of the step `source`.

    absolute: at or above the absolute values of the exact map's entries. constant: of the shape of the output.
    constant_size: at or above everything that was added up to the constant, per coordinate. roundings: that a
    coordinate of the product, of the transpose's or of the constant may have seen. forward: roundings of the operation
    where the network runs; 0 if it computes nothing.
    """

    source: int
    map: LinearMap
    absolute: LinearMap
    constant: Tensor
    constant_size: Tensor
    roundings: int
    forward: int = 0

    @property
    def shape(self) -> Shape:
        """Of the output."""
        return self.map.out_shape

    @property
    def charged(self) -> int:
        """Roundings to charge for a coordinate of the product, or of the transpose's."""
        return ALGORITHM_FACTOR * self.roundings


def affine(
    source: int, map_: LinearMap, constant: Tensor, constant_size: Tensor, roundings: int, *, forward: int = 0
) -> Affine:
    """An affine step; roundings: that the constant has seen."""
    return Affine(source, map_, map_.absolute(), constant, constant_size, map_.roundings + roundings, forward)


@dataclass(frozen=True, eq=False)
class Activation:
    """A scalar function of every coordinate of the step `source`.

    origin: its operation in the captured graph; None where it is a part of one (of a sort).
    """

    source: int
    function: ScalarFunction
    shape: Shape
    origin: fx.Node | None = None


@dataclass(frozen=True, eq=False)
class Total:
    """The sum of the steps `sources`."""

    sources: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True, eq=False)
class Concatenation:
    """The steps `sources` side by side along the unbatched `axis`; sizes: of each along it."""

    sources: tuple[int, ...]
    axis: int
    sizes: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True, eq=False)
class Product:
    """The products of the coordinates of two steps."""

    sources: tuple[int, int]
    shape: Shape


@dataclass(frozen=True, eq=False)
class Known:
    """The values of the step `source`, which lie between `low` and `high` for all inputs whatsoever."""

    source: int
    low: float
    high: float
    shape: Shape


Step = Input | Affine | Activation | Total | Concatenation | Product | Known


def sources_of(step: Step) -> tuple[int, ...]:
    """The steps that a step reads."""
    match step:
        case Input():
            return ()
        case Affine() | Activation() | Known():
            return (step.source,)
        case Total() | Concatenation() | Product():
            return step.sources


def converted(step: Step, dtype: torch.dtype) -> Step:
    """The same step in another precision: what a search computes with, never a proof."""
    if not isinstance(step, Affine):
        return step
    return replace(
        step,
        map=in_precision(step.map, dtype),
        absolute=in_precision(step.absolute, dtype),
        constant=step.constant.to(dtype),
        constant_size=step.constant_size.to(dtype),
    )
