"""Bounds of a residual block S x + V phi(W x + b): textbook, loop transformation, joint; the smallest is kept."""

import math
from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor

from robustres.certify.bound import Guarantee, JointBound
from robustres.certify.incremental_form import gain
from robustres.certify.linear_map import Composition, LinearMap, Sum
from robustres.certify.mask_ascent import affordable_steps, mask_ascent
from robustres.certify.residual_block import DenseForm, ResidualBlock, TorusForm, block_embedding
from robustres.certify.scaling_search import (
    COARSE_SCAN,
    SCAN_ABOVE_MINIMUM,
    FormSource,
    Scaling,
    descend,
    evaluate,
    layered_starting_points,
    loop_transformation,
    prove,
    starting_points,
)
from robustres.certify.sector import GroupSort, Slopes, largest_slope
from robustres.certify.spectral_norm import spectral_norm
from robustres.errors import InputError
from robustres.numerics import require_certifiable_arithmetic, rounded_up

DENSE_WIDTH = 700  # inputs and hidden units of a block that is treated neuron by neuron
SCANNED = 32
SEARCH_EVALUATIONS = 20  # of all frequencies, that a search on one more torus should be able to make
DEFAULT_EFFORT = 5.0


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

    >>> from robustres.certify.linear_map import Dense, Identity
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
    sources = _form_sources(block, math.inf)
    if not sources:
        raise InputError("this block has no torus and is too large for a dense form, so no multipliers belong to it")
    gains = [gain(form, multipliers.to(torch.float64)) for form in sources[twist].chunks()]
    return torch.cat(gains).amax().clamp_min(0).sqrt()


def branch_bound(
    shortcut: LinearMap, layers: Sequence[LinearMap], *, slopes: Sequence[Slopes], effort: float = DEFAULT_EFFORT
) -> JointBound:
    """The same for a branch of any depth, e.g. a bottleneck of three convolutions: layers in order of application."""
    start = perf_counter()
    block = ResidualBlock(shortcut, tuple(layers), tuple(slopes))
    require_certifiable_arithmetic(shortcut.device)
    with torch.no_grad():
        candidates, norms = _norm_candidates(block, effort)
        multipliers: tuple[float, ...] = ()
        twist = 0
        if all(norm > 0 for norm in norms) and math.isfinite(candidates["textbook"]):
            joint, multipliers, twist = _joint_candidates(block, norms, effort, candidates["textbook"])
            candidates |= joint
        best = min(candidates, key=lambda key: candidates[key])
        steps = affordable_steps(block)
        lower = min(mask_ascent(block, steps=min(steps, 60), restarts=max(1, steps // 60)).value, candidates[best])
    return JointBound(
        lower, candidates[best], best, Guarantee(), perf_counter() - start, candidates, multipliers, twist
    )


def _norm_candidates(block: ResidualBlock, effort: float) -> tuple[dict[str, float], list[float]]:
    """The bounds that need norms only, and the norms of the branch's layers."""
    share = effort / (4 * len(block.layers))
    norms = [spectral_norm(layer, seconds=share, lower_steps=1).upper for layer in block.layers]
    shortcut = spectral_norm(block.shortcut, seconds=share, lower_steps=1).upper
    steepest = math.prod(largest_slope(slopes) for slopes in block.slopes)
    branch = rounded_up(math.prod(norms) * steepest, 2 * len(norms))
    candidates = {"textbook": rounded_up(shortcut + branch, 1)}
    linear = [s[0] for s in block.slopes if not isinstance(s, GroupSort) and s[0] == s[1]]
    if len(linear) == len(block.slopes):
        merged = Sum((block.shortcut, math.prod(linear) * Composition(block.layers)))
        candidates["linear"] = spectral_norm(merged, seconds=share, lower_steps=1).upper
    return candidates, norms


def _joint_candidates(
    block: ResidualBlock, norms: Sequence[float], effort: float, give_up_above: float
) -> tuple[dict[str, float], tuple[float, ...], int]:
    """The joint bound by the form that fits, dense for small blocks, else on tori; and the loop transformation."""
    sources = _form_sources(block, effort)
    if not sources:
        return {}, (), 0
    searched = [(source, _search(source, block, norms, 0.6 * effort / len(sources))) for source in sources]
    twist, (source, scaling) = min(enumerate(searched), key=lambda item: item[1][1].value)
    if math.isfinite(scaling.value) and len(scaling.gains) == len(source.frequencies):
        scaling = descend(source, scaling, effort=0.4 * effort, rate=0.05)
    name = "joint, dense" if isinstance(source, DenseForm) else "joint"
    found = {name: prove(source, scaling, give_up_above=give_up_above) if math.isfinite(scaling.value) else math.inf}
    if len(block.slopes) == 1 and len(source.frequencies) * source.cost < effort / SEARCH_EVALUATIONS:
        found["loop transformation"] = loop_transformation(source)
    multipliers = tuple(scaling.values.tolist()) if math.isfinite(found[name]) else ()
    return {key: value for key, value in found.items() if math.isfinite(value)}, multipliers, twist


def _form_sources(block: ResidualBlock, effort: float) -> list[FormSource]:
    """One dense matrix where the block is small; else its smallest torus, under as many twists as the effort allows."""
    sources: list[FormSource]
    if block.shortcut.in_size + sum(layer.out_size for layer in block.layers[:-1]) <= DENSE_WIDTH:
        sources = [DenseForm(block)]
    else:
        embedding = block_embedding(block)
        if embedding is None:
            return []
        tori = embedding.tori(enlargements=0)
        first = TorusForm(block, embedding, tori[0])
        affordable = min(len(tori), effort / (SEARCH_EVALUATIONS * first.cost * len(first)))
        sources = [first, *(TorusForm(block, embedding, torus) for torus in tori[1 : int(affordable)])]
    return sources if sources[0].form(sources[0].frequencies[:1]).tie.numel() else []


def _search(source: FormSource, block: ResidualBlock, norms: Sequence[float], effort: float) -> Scaling:
    """The best start by its gain at a few frequencies, then descent; large blocks stop at a coarser scan."""
    count = len(source.frequencies)
    whole = source.cost * count  # nominal seconds of one evaluation at all frequencies
    coarse = whole > effort
    scanned = 2 if coarse else max(2, min(count, SCANNED, int(0.2 * effort / (40 * source.cost))))
    places = torch.linspace(0, count - 1, scanned).round().long().to(source.frequencies.device)
    form = source.form(source.frequencies[places])
    starts = starting_points(form, COARSE_SCAN if coarse else SCAN_ABOVE_MINIMUM) if form.z_hidden is None else []
    starts += layered_starting_points(form, form.layer_of_tie, _normalised(block, norms))
    gains = [gain(form, values) for values in starts]
    ranked = sorted(range(len(starts)), key=lambda index: float(gains[index].max()))
    if coarse:
        places = torch.linspace(0, count - 1, max(1, min(count - 1, SCANNED // 2))).round().long().to(places.device)
        wider = gain(source.form(source.frequencies[places]), starts[ranked[0]])
        return Scaling(starts[ranked[0]], float(wider.max()), wider)
    scaling = min(
        (evaluate(source, starts[index]) for index in ranked[: 1 if 4 * whole > effort else 2]),
        key=lambda found: found.value,
    )
    return descend(source, scaling, effort=effort) if math.isfinite(scaling.value) else scaling


def _normalised(block: ResidualBlock, norms: Sequence[float]) -> list[float]:
    """Norms of all layers but the first, each times the width of the slopes before it."""
    widths = [2.0 if isinstance(s, GroupSort) else max(s[1], 0) - min(s[0], 0) for s in block.slopes]
    return [norm * width for norm, width in zip(norms[1:], widths, strict=True)]
