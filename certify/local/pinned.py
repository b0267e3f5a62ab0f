"""A network on a part of a region: activations of two pieces are linear there if they were split at their kink.

The network in which each of them is replaced by the piece of its part has the same values as the network itself at
every input of the part. Elsewhere it may differ, also at the image around which the region lies; its values there are
the centre of a quadratic certificate of the part.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustres.certify.graph.network import Node
from robustres.certify.local.intermediate import Bounds
from robustres.certify.local.parts import Way
from robustres.certify.local.program import Program
from robustres.certify.local.steps import Activation
from robustres.certify.maps.activation import Activation as ScalarFunction
from robustres.certify.maps.activation import Parameter, PiecewiseLinear
from robustres.certify.proof.rounding import Rounding, least
from robustres.numerics import UNIT_ROUNDOFF


@dataclass(frozen=True, eq=False)
class Pinned(PiecewiseLinear):
    """A function of two pieces through the origin, replaced by its right piece where `above`, by its left one where
    `below`; both of the step's shape."""

    whole: PiecewiseLinear
    above: Tensor
    below: Tensor
    kinks = (0.0,)

    @property
    def pieces(self) -> tuple[Parameter, ...]:
        """The slopes on both sides of 0."""
        left, right = (torch.as_tensor(piece, dtype=torch.float64) for piece in self.whole.pieces)
        left, right = (piece.to(self.above.device) for piece in (left, right))
        return torch.where(self.above, right, left), torch.where(self.below, left, right)

    def __call__(self, x: Tensor) -> Tensor:
        left, right = (torch.as_tensor(piece).to(x) for piece in self.pieces)
        return torch.where(x > 0, right * x, left * x)

    def rounding(self, dtype: torch.dtype) -> Rounding | None:
        """One product, of a slope that may be rounded itself."""
        own = self.whole.rounding(dtype)
        return own and replace(
            own, relative=max(own.relative, 3 * UNIT_ROUNDOFF[dtype]), lost=max(own.lost, least(dtype))
        )


def pinnable(function: ScalarFunction) -> bool:
    """Whether the function consists of two lines through the origin."""
    if not isinstance(function, PiecewiseLinear) or len(function.pieces) != 2:
        return False
    kink = torch.as_tensor(function.kinks[0], dtype=torch.float64)
    return not bool(kink.any()) and float(function(torch.zeros(1, dtype=torch.float64)).abs().max()) == 0


def pinned(program: Program, way: Way) -> Program:
    """The network on the part that a way of splits leads to; only splits at 0 of `pinnable` functions are used."""
    steps = list(program.steps)
    sides: dict[int, tuple[Tensor, Tensor]] = {}
    for split, above in way:
        step = steps[split.place]
        if not isinstance(step, Activation) or split.point != 0 or not pinnable(step.function):
            continue
        if split.place not in sides:
            no = torch.zeros(step.shape, dtype=torch.bool, device=program.device)
            sides[split.place] = no, no.clone()
        sides[split.place][0 if above else 1].view(-1)[split.coordinate] = True
    for place, (above_ones, below_ones) in sides.items():
        step = steps[place]
        assert isinstance(step, Activation)
        assert isinstance(step.function, PiecewiseLinear)
        steps[place] = replace(step, function=Pinned(step.function, above_ones, below_ones))
    return replace(program, steps=tuple(steps))


def narrowed(program: Program, bounds: Bounds, way: Way) -> Bounds:
    """Bounds of all steps on the part; lines are left out. bounds: of the whole region, one sample."""
    lower, upper = list(bounds.lower), list(bounds.upper)
    fresh: set[int] = set()
    for split, above in way:
        step = program.steps[split.place]
        assert isinstance(step, Activation)
        if step.source not in fresh:
            for sides in (lower, upper):
                sides[step.source] = sides[step.source].clone(memory_format=torch.contiguous_format)
            fresh.add(step.source)
        side = (lower if above else upper)[step.source].view(-1)
        limit = side.new_full((), split.point)
        at = split.coordinate
        side[at] = torch.maximum(side[at], limit) if above else torch.minimum(side[at], limit)
    for source in fresh:  # a part may be empty; then any statement about it is true
        upper[source] = torch.maximum(lower[source], upper[source])
    return Bounds(lower, upper)


def arguments(program: Program) -> dict[int, Node]:
    """By activation, the node of the simplified network that computes its argument."""
    return {place: node.inputs[0] for node, place in program.scalar_nodes.items()}


def kinked(program: Program) -> dict[Node, int]:
    """By node, the activations that a split at 0 makes linear."""
    found = {}
    for node, place in program.scalar_nodes.items():
        step = program.steps[place]
        assert isinstance(step, Activation)
        if pinnable(step.function):
            found[node] = place
    return found
