"""The result of `lipschitz`: one row per block, the product, and the refused operations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pandas as pd

from robustres.arguments import require_number
from robustres.certify.bounds.block_row import BlockRow
from robustres.certify.bounds.bounded_network import Analysis
from robustres.certify.bounds.head import Head
from robustres.certify.bounds.network_view import NetworkView, network_view
from robustres.certify.bounds.rescaled_block import rescaled_candidates
from robustres.certify.bounds.whole_network import WholeBound
from robustres.certify.maps.linear_map import Shape
from robustres.certify.proof.bound import Guarantee, all_hold
from robustres.errors import InputError, Refusal
from robustres.numerics import product_up
from robustres.results import typed_table

PRODUCT = "product of the pieces"


@dataclass(frozen=True)
class LipschitzReport:
    """Bounds of a whole network and of its blocks, from the input pixels to the logits.

    blocks: rows in the order of the network; the product of their `upper` is `product`.
    upper: a bound on the Lipschitz constant of the logits in `norm`, the smallest of all computed bounds (`method`
        names it); infinite if something was refused. l2_upper and linf_upper: the bounds in the two norms.
    whole: the l2 bound of all layers at once, what its kind of multipliers can reach, or why it was skipped.
    lower: a lower estimate, which certifies nothing.
    refused: operations without a rule and their locations; empty for a network that is covered.
    analysis: the network as it was bounded, which `certify` needs; None if something was refused.
    domain: the inputs for which the bounds hold: all, or images in [0, 1]^n.
    head: the final linear layer with the bounds of everything before it; None if the network does not end in one.
    """

    input_shape: Shape
    norm: Literal["l2", "linf"]
    blocks: tuple[BlockRow, ...]
    upper: float
    lower: float
    refused: tuple[Refusal, ...] = ()
    head: Head | None = field(default=None, repr=False)
    l2_upper: float = math.inf
    linf_upper: float = math.inf
    seconds: float = 0.0
    guarantee: Guarantee = field(default_factory=Guarantee)
    product: float = math.inf
    method: str = PRODUCT
    whole: WholeBound = field(default_factory=WholeBound)
    analysis: Analysis | None = field(default=None, repr=False, compare=False)
    domain: Literal["all", "unit"] = "all"

    @property
    def residual_blocks(self) -> tuple[BlockRow, ...]:
        """The rows that are residual blocks."""
        return tuple(row for row in self.blocks if row.is_residual)

    def ledger(self) -> pd.DataFrame:
        """`to_frame` with a column for every bound computed for residual blocks, such as linear and joint (NaN where it
        was not computed), the tightness upper / lower, and the seconds.
        """
        methods = dict.fromkeys(method for row in self.residual_blocks for method in row.candidates)
        return self.to_frame().assign(
            **{method: [row.candidates.get(method, math.nan) for row in self.blocks] for method in methods},
            tightness=[row.tightness for row in self.blocks],
            seconds=[row.seconds for row in self.blocks],
        )

    def __str__(self) -> str:
        where = " on [0, 1]^n" if self.domain == "unit" else ""
        whole = (
            f"{self.norm} Lipschitz constant{where} at most {self.upper:.6g} ({self.method}, {self.guarantee}), "
            f"at least {self.lower:.6g}"
        )
        if self.refused:
            return f"{whole}; without a rule: {'; '.join(map(str, self.refused))}"
        rows = self.ledger().drop(columns="guarantee")
        table = rows.to_string(index=False, na_rep="", float_format="{:.4g}".format)
        return f"{table}\n{whole}; {self.explanation()}"

    def explanation(self) -> str:
        """The origin of the bound of the whole network, in one sentence."""
        if self.whole.skipped:
            return f"product of the pieces {self.product:.6g}; layers not eliminated: {self.whole.skipped}"
        return (
            f"product of the pieces {self.product:.6g}, layers eliminated {self.whole.upper:.6g} "
            f"(a multiplier for each {self.whole.shares} cannot go below {self.whole.reachable:.6g})"
        )

    def to_frame(self) -> pd.DataFrame:
        """The rows as the table `blocks` of a run folder; only reproducible columns, so without seconds."""
        names = ("name", "kind", "shortcut", "branch", "textbook", "joint", "upper", "lower", "floor", "method")
        rows = [{name: getattr(row, name) for name in names} | {"guarantee": str(row.guarantee)} for row in self.blocks]
        return typed_table("blocks", rows)

    def view(self) -> NetworkView:
        """The network as a sequence of pieces: each as a function of float64 states, with its shortcut and its bounds.

        Raises InputError if something was refused.
        """
        if self.analysis is None:
            raise InputError("the report has no view of the network, since some of its operations were refused")
        return network_view(self.analysis.captured, self.analysis.output, self.blocks)

    def block(self, name: str) -> BlockRow:
        """The row of that name; raises InputError with a list of the names if there is none."""
        for row in self.blocks:
            if row.name == name:
                return row
        raise InputError(f"no block is called {name!r}; the blocks are {', '.join(row.name for row in self.blocks)}")

    def what_if(self, name: str, factor: float) -> "WhatIf":
        """The bound of the network if one piece were rescaled; it is not a bound of the network as it is.

        For a residual block, `factor` multiplies the branch (F becomes factor F), and the block is bounded again by
        every method that bounded it, with its own T for the joint bound; for any other piece, `factor` multiplies its
        constant. `network_upper`, the product of the pieces, is a valid bound of the rescaled network, and
        `radius_gain` is the improvement of the product. Raises InputError for a report on [0, 1]^n, where a
        rescaled piece changes the values, and thereby the slopes, of all pieces after it.
        """
        require_number("factor", factor)
        if self.domain == "unit":
            raise InputError(
                f"a rescaled {name} changes the values of later pieces on [0, 1]^n, from which their bounds follow; "
                "rescale it in the model and call lipschitz again"
            )
        row = self.block(name)
        candidates = {row.method: product_up([factor, row.upper])}
        if row.is_residual:
            analysis = self.analysis if self.norm == "l2" else None
            candidates = rescaled_candidates(analysis, self.blocks.index(row), row, factor)
        method = min(candidates, key=lambda key: candidates[key])
        block = candidates[method]
        network, _ = multiplied([replace(other, upper=block) if other is row else other for other in self.blocks])
        return WhatIf(name, factor, block, network, self.product / network if network > 0 else math.inf, method)


@dataclass(frozen=True)
class WhatIf:
    """The hypothetical bounds of one block and of the network after rescaling, the factor by which all radii would
    grow, and the method that bounds the block."""

    name: str
    factor: float
    block_upper: float
    network_upper: float
    radius_gain: float
    method: str


def multiplied(rows: Sequence[BlockRow]) -> tuple[float, Guarantee]:
    """The product of the rows' bounds, rounded up, and the guarantee under which all of them hold."""
    return product_up(row.upper for row in rows if row.upper != 1), all_hold(row.guarantee for row in rows)


def with_lower(row: BlockRow, name: str, lower: float) -> BlockRow:
    """The row under its unique name with the larger of two lower estimates."""
    return replace(row, name=name, lower=min(max(row.lower, lower), row.upper))
