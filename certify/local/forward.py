"""What the network's own rounding may change: how far each computed value lies from the exact answer of its operation.

A network that runs in float32 is the exact network with a small number added at every step. Nothing is assumed about
these numbers but their sizes: gamma_n times what is added up for n roundings in any order, with or without fused
multiplications and additions, and what is lost to subnormal numbers. Bounds of a `Program` with `runs` hold for every
network of this kind: each interval is widened by the number's size, and each row charged with its product with it.
"""

import torch
from torch import Tensor

from robustres.certify.local.steps import Activation, Affine, Concatenation, Input, Step, Total
from robustres.certify.proof.rounding import least
from robustres.errors import PrecisionError
from robustres.numerics import UNIT_ROUNDOFF, gamma

# The sizes below are themselves computed, in float32 by a search.
ROOM = 1 + 1e-5


def introduced(
    step: Step, lower: list[Tensor], upper: list[Tensor], values: tuple[Tensor, Tensor], runs: torch.dtype
) -> Tensor | None:
    """(N, *shape) at or above what the rounding of one step adds, on a region; None if it rounds nothing.

    lower, upper: of every step before, as computed. values: of the step's exact answers to these. PrecisionError if
    nothing is known of how it is computed in the type `runs`.
    """
    lost = least(runs)

    def size(place: int) -> Tensor:
        return torch.maximum(lower[place].abs(), upper[place].abs())

    match step:
        case Input() | Concatenation():
            return None
        case Affine():
            if not step.forward:
                return None
            added = step.absolute(size(step.source)) + step.constant_size
            return (gamma(step.forward, runs) * added + lost * step.forward * (1 + added)) * ROOM
        case Total():
            added = sum(map(size, step.sources[1:]), size(step.sources[0]))
            return gamma(len(step.sources), runs) * added * ROOM
        case Activation():
            function, unit = step.function, UNIT_ROUNDOFF[runs]
            own = function.rounding(runs)
            if own is None:
                raise PrecisionError(
                    f"no bound is known on the rounding of {type(function).__name__} in {runs}; certify in "
                    "torch.float64"
                )
            if own.relative == 0 and own.lost == 0 and function.jump == 0:
                return None
            largest = torch.maximum(values[0].abs(), values[1].abs())
            added = function.constant * size(step.source) + largest
            return ((own.relative + unit) * added + function.jump + own.lost + lost) * ROOM
    raise PrecisionError(
        f"no bound is known on the rounding of {type(step).__name__} in {runs}; certify in torch.float64"
    )
