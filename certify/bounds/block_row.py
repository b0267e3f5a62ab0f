"""One row of the report: a block of the network, or a piece between blocks, with all computed bounds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from robustres.certify.proof.bound import Guarantee, tightness


@dataclass(frozen=True)
class BlockRow:
    """Bounds of one piece of the network; the product of `upper` over all rows bounds the network.

    name: dotted path of the module. kind: what it is, "residual (identity)" and "residual (projection)" for blocks.
    shortcut, branch: bounds of the two sides of a residual block, NaN elsewhere.
    textbook: shortcut + branch. joint: the joint bound (section 3.3 of the mathematics). NaN if they do not apply or
    were not requested.
    candidates: all valid computed bounds, by method. upper: the smallest of them; method: its name.
    lower: a lower estimate for the block as it is; it certifies nothing.
    floor: the largest norm found when every slope of an activation may be chosen freely: no bound that uses only the
        range of the slopes, as all of these do, can be lower. It may exceed the block's own constant, since the biases
        may rule out this combination of slopes. NaN if it was not computed.
    """

    name: str
    kind: str
    upper: float
    lower: float
    method: str
    guarantee: Guarantee = field(default_factory=Guarantee)
    shortcut: float = math.nan
    branch: float = math.nan
    textbook: float = math.nan
    joint: float = math.nan
    candidates: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    floor: float = math.nan

    @property
    def is_residual(self) -> bool:
        """Whether this is a residual block."""
        return self.kind.startswith("residual")

    @property
    def tightness(self) -> float:
        """upper / lower: the truth lies within this factor."""
        return tightness(self.lower, self.upper)
