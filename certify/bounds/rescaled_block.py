"""The bounds of a block with its branch multiplied by a factor."""

import math

from robustres.certify.blocks.joint_bound import branch_bound
from robustres.certify.blocks.parallel_paths import region
from robustres.certify.bounds.block_row import BlockRow
from robustres.certify.bounds.bounded_network import Analysis
from robustres.certify.graph.network import Linear, Merge, Node, dominators
from robustres.certify.maps.folding import added
from robustres.certify.maps.linear_map import Identity, Scaled
from robustres.numerics import rounded_up


def rescaled_candidates(analysis: Analysis | None, place: int, row: BlockRow, factor: float) -> dict[str, float]:
    """Every l2 bound, by method, of the residual block in row `place` of the network with F replaced by factor F.

    The textbook bound is always included; the joint bound is recomputed with its own T; a linear branch is added to S.
    """
    candidates = {"textbook": rounded_up(row.shortcut + factor * row.branch, 2)}
    if factor <= 1:  # S + factor F = (1 - factor) S + factor (S + F)
        candidates["mixture"] = rounded_up((1 - factor) * row.shortcut + factor * row.upper, 4)
    if analysis is None or not analysis.bounder.joint:
        return candidates
    end = analysis.bounder.rows(analysis.output)[place][1]
    return candidates | _linear(analysis, end, factor) | _joint(analysis, end, factor)


def _linear(analysis: Analysis, end: Node, factor: float) -> dict[str, float]:
    if not isinstance(end.piece, Linear) or not end.piece.summands:
        return {}
    terms = [term if isinstance(term, Identity) else Scaled(factor, term) for term in end.piece.summands]
    return {"linear": analysis.bounder.norm_of(added(terms)).upper}


def _joint(analysis: Analysis, end: Node, factor: float) -> dict[str, float]:
    if not isinstance(end.piece, Merge):
        return {}
    found = region(dominators(analysis.bounder.order), end)
    turns = found.alternating() if found.is_sum else None
    if turns is None:
        return {}
    shortcut, layers, slopes = turns
    layers = [*layers[:-1], Scaled(factor, layers[-1])]
    bound = branch_bound(shortcut, layers, slopes=slopes, effort=analysis.bounder.effort)
    return {name: value for name, value in bound.candidates.items() if math.isfinite(value)}
