"""Sorts, maxima, softmax, norms and normalisation as steps of other kinds, bounded like the rest of a network.

What is known of a value for all inputs is kept with it: a mean square is never negative, and no normalised value is
larger than the root of the number of values that are normalised together.
"""

import math
from collections.abc import Sequence
from functools import singledispatch

import torch
from torch import Tensor

from robustres.certify.local.comparisons import comparisons
from robustres.certify.local.steps import Activation, Known, Product, Step, Total, affine
from robustres.certify.maps.activation import Activation as ScalarFunction
from robustres.certify.maps.convolution import average_pool
from robustres.certify.maps.coordinate_maps import Diagonal, Selection, rearranged
from robustres.certify.maps.curves import Exp, Power, Square
from robustres.certify.maps.lengths import Length, Normalisation
from robustres.certify.maps.linear_map import Composition, Identity, LinearMap, Scaled, Shape, Sum
from robustres.certify.maps.nonlinear import Extremum, LogSumExp, MaxPool, Opaque, Softmax, Sort
from robustres.certify.maps.piecewise_linear import Abs, Relu
from robustres.certify.maps.smooth import Softplus
from robustres.numerics import rounded_up


class Steps(list[Step]):
    """The steps so far; each method adds one and returns its place."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def put(self, step: Step) -> int:
        """Any step."""
        self.append(step)
        return len(self) - 1

    def shape(self, place: int) -> Shape:
        """Of a step's values."""
        return self[place].shape

    def plain(self, source: int, map_: LinearMap, constant: float = 0.0) -> int:
        """A linear map, plus a constant at every coordinate."""
        whole = torch.full(map_.out_shape, constant, dtype=torch.float64, device=self.device)
        return self.put(affine(source, map_, whole, whole.abs(), 0))

    def applied(self, source: int, function: ScalarFunction) -> int:
        """A scalar function."""
        return self.put(Activation(source, function, self.shape(source)))

    def known(self, source: int, low: float, high: float) -> int:
        """The same values, with what is known of them."""
        return self.put(Known(source, low, high, self.shape(source)))

    def difference(self, first: int, second: int) -> int:
        """The first less the second."""
        shape = self.shape(first)
        return self.put(Total((first, self.plain(second, Scaled(-1.0, Identity(shape)))), shape))


@singledispatch
def composed(piece: Opaque, source: int, steps: Steps) -> int:
    """The place of the piece's answer for the values of step `source`; NotImplementedError where there is none."""
    raise NotImplementedError("has no relaxation")


@composed.register(Sort)
@composed.register(Extremum)
@composed.register(MaxPool)
def _(piece: Sort | Extremum | MaxPool, source: int, steps: Steps) -> int:
    return _compared(piece, source, steps, Relu())


@composed.register
def _(piece: LogSumExp, source: int, steps: Steps) -> int:
    """log(exp a + exp b) = a + softplus(b - a), by comparators like the largest of all values."""
    return _compared(Extremum(piece.axes, True, piece.keepdim), source, steps, Softplus(1.0, math.inf))


@composed.register
def _(piece: Softmax, source: int, steps: Steps) -> int:
    """exp(x - log sum exp x)."""
    shape = steps.shape(source)
    total = composed(LogSumExp((piece.along,), piece.length, True), source, steps)
    total = steps.plain(total, _copied(steps.shape(total), shape, steps))
    return steps.applied(steps.known(steps.difference(source, total), -math.inf, 0.0), Exp())


@composed.register
def _(piece: Length, source: int, steps: Steps) -> int:
    """The largest size, the sum of the sizes, or the root of the sum of the squares."""
    if piece.order == math.inf:
        return composed(Extremum(piece.axes, True, piece.keepdim), steps.applied(source, Abs()), steps)
    sizes = steps.applied(source, Abs() if piece.order == 1 else Square())
    shape = steps.shape(source)
    kept = [axis for axis in range(len(shape)) if axis not in piece.axes]
    numbers = torch.arange(math.prod(shape), device=steps.device).reshape(shape).permute(*kept, *piece.axes)
    groups = (numbers.numel() // piece.length, 1, piece.length)
    parts = [rearranged(numbers.reshape(groups), shape), average_pool(groups, (1, piece.length), device=steps.device)]
    found = steps.plain(
        sizes, _folded([*parts, Scaled(float(piece.length), Identity((groups[0], 1, 1), piece.out_shape(shape)))])
    )
    found = steps.known(found, 0.0, math.inf)
    return found if piece.order == 1 else steps.applied(found, Power(0.5))


@composed.register
def _(piece: Normalisation, source: int, steps: Steps) -> int:
    """z / sqrt(mean of z^2 + eps) gamma, with z = x less its mean."""
    shape, size = steps.shape(source), piece.group
    groups = (math.prod(shape) // size, 1, size)
    mean: list[LinearMap] = [Identity(shape, groups), average_pool(groups, (1, size), device=steps.device)]
    copied = _copied((groups[0], 1, 1), groups, steps, shape)
    z = source
    if piece.centred:
        z = steps.plain(source, Sum((Identity(shape), Scaled(-1.0, _folded([*mean, copied])))))
    square = steps.plain(steps.applied(z, Square()), _folded(mean), piece.eps)
    factor = steps.applied(steps.known(square, piece.eps, math.inf), Power(-0.5))
    largest = rounded_up(math.sqrt(max(size - piece.centred, 0)), 2)
    found = steps.put(Product((z, steps.plain(factor, copied)), shape))
    found = steps.known(found, -largest, largest)
    if not isinstance(piece.factor, Tensor):
        return found if piece.factor == 1 else steps.plain(found, Scaled(piece.factor, Identity(shape)))
    return steps.plain(found, Diagonal(piece.factor.expand(shape).clone(), shape))


def _compared(piece: Sort | Extremum | MaxPool, source: int, steps: Steps, larger: ScalarFunction) -> int:
    """By comparators: of two places the first takes a + larger(b - a), the second b - larger(b - a)."""
    plan = comparisons(piece, steps.shape(source), steps.device)
    place = steps.plain(source, plan.entry)
    for gap, spread in plan.rounds:
        ahead = steps.plain(steps.applied(steps.plain(place, gap), larger), spread)
        place = steps.put(Total((place, ahead), steps.shape(place)))
    return steps.plain(place, plan.exit)


def _copied(few: Shape, many: Shape, steps: Steps, out_shape: Shape | None = None) -> LinearMap:
    """Copies along the axes of length 1."""
    numbers = torch.arange(math.prod(few), device=steps.device).reshape(few).expand(many)
    return Selection(numbers.flatten(), few, out_shape or many)


def _folded(parts: Sequence[LinearMap]) -> LinearMap:
    fitting = [part for part in parts if not (isinstance(part, Identity) and part.in_shape == part.out_shape)]
    return fitting[0] if len(fitting) == 1 else Composition(fitting)
