"""Bounds of a residual block S x + V phi(W x + b): textbook, loop transformation, joint; the smallest is kept."""

import math
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from robustres.certify.blocks.incremental_form import gain
from robustres.certify.blocks.joint_search import SEARCH_EVALUATIONS, direct_form, search
from robustres.certify.blocks.loop_transformation import loop_transformation
from robustres.certify.blocks.mask_ascent import affordable_steps, mask_ascent
from robustres.certify.blocks.multiplier_search import prove
from robustres.certify.blocks.residual_block import DenseForm, ResidualBlock
from robustres.certify.maps.linear_map import Composition, LinearMap, Sum
from robustres.certify.maps.sector import GroupSort, Slopes, largest_slope
from robustres.certify.norms.spectral_norm import spectral_norm
from robustres.certify.proof.bound import Guarantee, JointBound
from robustres.errors import InputError
from robustres.numerics import require_certifiable_arithmetic, rounded_up

DEFAULT_EFFORT = 2.0
NormOf = Callable[[LinearMap], float]


def joint_bound(
    shortcut: LinearMap,
    inner: LinearMap,
    outer: LinearMap,
    *,
    slopes: Slopes = (0.0, 1.0),
    effort: float = DEFAULT_EFFORT,
) -> JointBound:
    """The Lipschitz constant of S x + V phi(W x + b) from both sides, for every bias and every phi with these slopes.

    shortcut, inner, outer: S, W, V. slopes: (a, b), or a `GroupSort`.
    effort: how much is spent on the search of T, in seconds of a nominal core; the same effort gives the same bound.
    upper: the smallest of `candidates`, all of them proved, deterministic. lower: see `mask_ascent`.

    A block that is 1-Lipschitz by construction, x - 2 W^T relu(W x) with |W| = 1, is recognised:

    >>> from robustres.certify.maps.linear_map import Dense, Identity
    >>> W = torch.eye(3, dtype=torch.float64)
    >>> round(joint_bound(Identity((3,)), Dense(W), Dense(-2 * W)).upper, 5)
    1.0
    """
    return branch_bound(shortcut, (inner, outer), slopes=(slopes,), effort=effort)


def joint_bound_at(
    multipliers: Tensor,
    shortcut: LinearMap,
    inner: LinearMap,
    outer: LinearMap,
    *,
    slopes: Slopes = (0.0, 1.0),
    twist: int = 0,
) -> Tensor:
    """The joint bound at fixed multipliers T > 0 as a differentiable number: a training constraint, not yet a proof.

    Build the maps from tensors that require gradients, take `multipliers` and `twist` from a `joint_bound` of the same
    shapes, and refresh them now and then: by the envelope theorem the gradient at fixed T is that of the best bound.
    Infinite where 2T - V^T V is not positive definite. It holds up to float64 rounding, and `joint_bound` proves it.
    """
    block = ResidualBlock(shortcut, (inner, outer), (slopes,))
    source = direct_form(block, twist)
    if source is None:
        raise InputError("this block has no torus and is too large for a dense form, so no multipliers belong to it")
    gains = [gain(form, multipliers.to(torch.float64)) for form in source.chunks()]
    return torch.cat(gains).amax().clamp_min(0).sqrt()


def branch_bound(
    shortcut: LinearMap,
    layers: Sequence[LinearMap],
    *,
    slopes: Sequence[Slopes],
    effort: float = DEFAULT_EFFORT,
    norm_of: NormOf | None = None,
) -> JointBound:
    """The same for a branch of any depth, e.g. a bottleneck of three convolutions: layers in order of application.

    norm_of: deterministic bounds of the norms of single maps, where they are known; computed here otherwise.
    """
    start = perf_counter()
    block = ResidualBlock(shortcut, tuple(layers), tuple(slopes))
    require_certifiable_arithmetic(shortcut.device)
    with torch.no_grad():
        candidates, shortcut_norm, norms = _norm_candidates(
            block, norm_of or _norm_within(effort / (4 * len(block.layers)))
        )
        multipliers: tuple[float, ...] = ()
        twist = 0
        if all(norm > 0 for norm in norms) and math.isfinite(candidates["textbook"]):
            joint, multipliers, twist = _joint_candidates(block, shortcut_norm, norms, effort, candidates["textbook"])
            candidates |= joint
        best = min(candidates, key=lambda key: candidates[key])
        steps = affordable_steps(block)
        lower = min(mask_ascent(block, steps=min(steps, 60), restarts=max(1, steps // 60)).value, candidates[best])
    return JointBound(
        lower, candidates[best], best, Guarantee(), perf_counter() - start, candidates, multipliers, twist
    )


def _norm_within(seconds: float) -> NormOf:
    return lambda map_: spectral_norm(map_, seconds=seconds, lower_steps=1).upper


def _norm_candidates(block: ResidualBlock, norm_of: NormOf) -> tuple[dict[str, float], float, list[float]]:
    """The bounds that need norms only, the norm of the shortcut and those of the branch's layers."""
    norms = [norm_of(layer) for layer in block.layers]
    shortcut = norm_of(block.shortcut)
    steepest = math.prod(largest_slope(slopes) for slopes in block.slopes)
    branch = rounded_up(math.prod(norms) * steepest, 2 * len(norms))
    candidates = {"textbook": rounded_up(shortcut + branch, 1)}
    linear = [s[0] for s in block.slopes if not isinstance(s, GroupSort) and s[0] == s[1]]
    if len(linear) == len(block.slopes):
        merged = Sum((block.shortcut, math.prod(linear) * Composition(block.layers)))
        candidates["linear"] = norm_of(merged)
    return candidates, shortcut, norms


def _joint_candidates(
    block: ResidualBlock, shortcut: float, norms: Sequence[float], effort: float, give_up_above: float
) -> tuple[dict[str, float], tuple[float, ...], int]:
    """The joint bound by the form that fits, dense for small blocks, else on tori; and the loop transformation."""
    found = search(block, shortcut, norms, effort=effort, limit=give_up_above**2)
    if found is None:
        return {}, (), 0
    source, scaling = found.source, found.scaling
    name = "joint, dense" if isinstance(source, DenseForm) else "joint"
    values = {name: prove(source, scaling, give_up_above=give_up_above) if math.isfinite(scaling.value) else math.inf}
    if len(block.slopes) == 1 and source.sweep < effort / SEARCH_EVALUATIONS:
        direct = direct_form(block, found.twist)
        if direct is not None and direct.sweep < effort / SEARCH_EVALUATIONS:
            values["loop transformation"] = loop_transformation(direct)
    multipliers = tuple(scaling.values.tolist()) if math.isfinite(values[name]) else ()
    return {key: value for key, value in values.items() if math.isfinite(value)}, multipliers, found.twist
