"""Textbook and joint bounds of a residual block S x + V phi(W x + b), of which the smallest is used."""

import math
from collections.abc import Callable, Sequence
from time import perf_counter

import torch

from robustres.certify.blocks.joint_search import is_dense, joint_value
from robustres.certify.blocks.mask_ascent import affordable_steps, mask_ascent
from robustres.certify.blocks.residual_block import ResidualBlock
from robustres.certify.maps.linear_map import Composition, LinearMap, Scaled, Sum
from robustres.certify.maps.sector import GroupSort, Slopes, largest_slope
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.certify.proof.bound import Guarantee, JointBound
from robustres.numerics import product_up, require_certifiable_arithmetic, scaled_down, scaled_up, sum_up

DEFAULT_EFFORT = 2.0
MODERATE = 100  # binary orders of magnitude between the weights and 1, and between shortcut and branch
NormOf = Callable[[LinearMap], float]


def joint_bound(
    shortcut: LinearMap,
    inner: LinearMap,
    outer: LinearMap,
    *,
    slopes: Slopes = (0.0, 1.0),
    effort: float = DEFAULT_EFFORT,
) -> JointBound:
    """Bound the Lipschitz constant of S x + V phi(W x + b) from both sides, for all b and all phi with these slopes.

    shortcut, inner, outer: S, W, V. slopes: (a, b), or a `GroupSort`.
    effort: effort of the search for T, in seconds of a nominal core; the same effort always gives the same bound.
    upper: the smallest of `candidates`, all of which are proved and deterministic. lower: see `mask_ascent`; for a
        block with given biases this is not an estimate of its constant but its `BlockRow.floor`.

    A block that is 1-Lipschitz by construction, x - 2 W^T relu(W x) with |W| = 1, is recognised:

    >>> from robustres.certify.maps.linear_map import Dense, Identity
    >>> W = torch.eye(3, dtype=torch.float64)
    >>> round(joint_bound(Identity((3,)), Dense(W), Dense(-2 * W)).upper, 5)
    1.0
    """
    return branch_bound(shortcut, (inner, outer), slopes=(slopes,), effort=effort)


def branch_bound(
    shortcut: LinearMap,
    layers: Sequence[LinearMap],
    *,
    slopes: Sequence[Slopes],
    effort: float = DEFAULT_EFFORT,
    norm_of: NormOf | None = None,
) -> JointBound:
    """The same for a branch of any depth, such as a bottleneck of three convolutions. layers: in order of application.

    norm_of: returns deterministic bounds of the norms of single maps if these are known; by default they are computed.
    """
    start = perf_counter()
    block = ResidualBlock(shortcut, tuple(layers), tuple(slopes))
    require_certifiable_arithmetic(shortcut.device)
    with torch.no_grad():
        norm_of = norm_of or _norm_within(effort / (4 * len(block.layers)))
        candidates, norms = _norm_candidates(block, norm_of)
        textbook = candidates["textbook"]
        brought = _moderate(block)
        if brought is not None and all(norm > 0 for norm in norms) and math.isfinite(textbook):
            moderate, exponent = brought
            limit = scaled_down(textbook, exponent) * (1 + 1e-9)
            value = scaled_up(joint_value(moderate, effort=effort, limit=limit), exponent)
            if value <= textbook:
                candidates["joint, dense" if is_dense(block) else "joint"] = value
        best = min(candidates, key=lambda key: candidates[key])
        steps = affordable_steps(block)
        moderate, exponent = brought or (block, 0)
        attained = mask_ascent(moderate, steps=min(steps, 60), restarts=max(1, steps // 60)).value
        lower = min(scaled_down(attained, exponent), candidates[best])
    return JointBound(lower, candidates[best], best, Guarantee(), perf_counter() - start, candidates)


def _moderate(block: ResidualBlock) -> tuple[ResidualBlock, int] | None:
    """A block with weights of about 1 that equals this one up to a power of two, and that power. None if shortcut or
    branch is negligible compared with the other, so that nothing can be gained.

    A hidden layer may be scaled by any number, since its inequality is homogeneous.
    """
    (shortcut, beside), *layers = (map_.normalised() for map_ in (block.shortcut, *block.layers))
    if all(abs(exponent) <= MODERATE for exponent in (beside, *(exponent for _, exponent in layers))):
        return block, 0
    through = sum(exponent for _, exponent in layers)
    top = max(beside, through)
    if min(beside, through) < top - MODERATE:
        return None
    maps = [layer for layer, _ in layers]
    maps[-1] = Scaled(math.ldexp(1.0, through - top), maps[-1])
    return ResidualBlock(Scaled(math.ldexp(1.0, beside - top), shortcut), tuple(maps), block.slopes), top


def _norm_within(seconds: float) -> NormOf:
    return lambda map_: spectral_norm(map_, seconds=seconds, lower_steps=1).upper


def _norm_candidates(block: ResidualBlock, norm_of: NormOf) -> tuple[dict[str, float], list[float]]:
    """The bounds that require only norms, and the norms of the branch's layers."""
    norms = [norm_of(layer) for layer in block.layers]
    shortcut = norm_of(block.shortcut)
    branch = product_up([*norms, *(largest_slope(slopes) for slopes in block.slopes)])
    candidates = {"textbook": sum_up([shortcut, branch])}
    linear = [s[0] for s in block.slopes if not isinstance(s, GroupSort) and s[0] == s[1]]
    if len(linear) == len(block.slopes):
        merged = Sum((block.shortcut, Scaled(math.prod(linear), Composition(block.layers), len(linear))))
        candidates["linear"] = norm_of(merged)
    return candidates, norms
