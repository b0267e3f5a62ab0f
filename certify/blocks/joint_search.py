"""The search for the multipliers of a block's joint bound: which form, which torus, which T."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from robustres.certify.blocks.direct_search import DirectSearch
from robustres.certify.blocks.incremental_form import gain
from robustres.certify.blocks.multiplier_form import FormSource, Scaling
from robustres.certify.blocks.multiplier_search import descend
from robustres.certify.blocks.reduced_block import ReducedBlock, reduced_block
from robustres.certify.blocks.reduced_search import ReducedForm
from robustres.certify.blocks.residual_block import DenseForm, ResidualBlock, TorusForm, block_embedding
from robustres.certify.blocks.starting_points import (
    COARSE_SCAN,
    SCAN_ABOVE_MINIMUM,
    layered_starting_points,
    reduced_starting_points,
    starting_points,
)
from robustres.certify.fourier.torus import Torus
from robustres.certify.maps.sector import GroupSort

DENSE_WIDTH = 700  # inputs and hidden units of a block that is treated neuron by neuron
SCANNED = 32  # frequencies at most that starting points are compared at
SEARCH_EVALUATIONS = 20  # of all frequencies, that a search on one more torus should be able to make
SCAN_SHARE = 0.25  # of the effort, for comparing starting points
TOO_DEAR = 2.5  # times the effort for one T and lambda: a search takes about thirty of them, so there is none


@dataclass(frozen=True)
class Found:
    """The best multipliers, with the form that they are proved on."""

    source: FormSource
    scaling: Scaling


def search(
    block: ResidualBlock, shortcut: float, norms: Sequence[float], *, effort: float, limit: float
) -> Found | None:
    """Multipliers for the form that fits: dense for small blocks, else reduced or whole on the smallest tori.

    shortcut, norms: of the shortcut and of the layers. limit: lambda of the textbook bound.
    Returns None where the block has no torus, no hidden unit that counts, or no multipliers that were found to do; and
    where the effort is far too small for the products of its kernels.
    """
    norms = _normalised(block, norms)
    if is_dense(block):
        return _direct([DenseForm(block)], norms, effort)
    embedding = block_embedding(block)
    if embedding is None:
        return None
    tori = embedding.tori(enlargements=0)
    reduced = reduced_block(block, embedding)
    if reduced is not None:
        return _reduced(reduced, tori, shortcut, norms, effort, limit)
    first = TorusForm(block, embedding, tori[0])
    affordable = int(min(len(tori), effort / (SEARCH_EVALUATIONS * first.sweep)))
    return _direct([first, *(TorusForm(block, embedding, torus) for torus in tori[1:affordable])], norms, effort)


def is_dense(block: ResidualBlock) -> bool:
    """Whether the block is treated neuron by neuron."""
    return block.shortcut.in_size + sum(layer.out_size for layer in block.layers[:-1]) <= DENSE_WIDTH


def _reduced(
    block: ReducedBlock, tori: list[Torus], shortcut: float, norms: Sequence[float], effort: float, limit: float
) -> Found | None:
    """All affordable tori are searched from one starting point, and the best one a little longer."""
    first = ReducedForm(block, tori[0])
    if first.overhead > TOO_DEAR * effort:
        return None
    started = _best_start(first, shortcut, norms, SCAN_SHARE * effort, 4 * limit)
    if started is None or not math.isfinite(started.value):
        return None
    affordable = max(1, int(min(len(tori), effort / (SEARCH_EVALUATIONS * first.sweep))))
    sources = [first, *(ReducedForm(block, torus) for torus in tori[1:affordable])]
    starts = [started, *(source.evaluate(started.values, started.value) for source in sources[1:])]
    share = 0.4 * effort / len(sources)
    searched = [
        descend(source, start, effort=share) if math.isfinite(start.value) else start
        for source, start in zip(sources, starts, strict=True)
    ]
    source, scaling = min(zip(sources, searched, strict=True), key=lambda found: found[1].value)
    return Found(source, descend(source, scaling, effort=0.35 * effort, rate=0.05))


def _best_start(
    source: ReducedForm, shortcut: float, norms: Sequence[float], effort: float, limit: float
) -> Scaling | None:
    """The starting point with the smallest gain at a few frequencies, as many as the effort allows to look at."""
    count = len(source.frequencies)
    scanned = max(2, min(count, SCANNED, int(effort / (40 * source.cost))))
    places = torch.linspace(0, count - 1, scanned).round().long().to(source.frequencies.device)
    frequencies = source.frequencies[places]
    affordable = max(4, int(effort / (2 * (source.overhead + source.cost * scanned))))
    best, value = None, limit
    for start in islice(reduced_starting_points(source.block, shortcut, norms), affordable):
        found = source.gain(start, frequencies, near=value, limit=value)
        if found < value:
            best, value = start, found
    return None if best is None else source.evaluate(best, value)


def _direct(sources: Sequence[DirectSearch], norms: Sequence[float], effort: float) -> Found | None:
    """Every torus is searched, and the best one a little longer."""
    if not sources[0].form(sources[0].frequencies[:1]).tie.numel():
        return None
    searched = [_direct_search(source, norms, 0.6 * effort / len(sources)) for source in sources]
    source, scaling = min(zip(sources, searched, strict=True), key=lambda found: found[1].value)
    if math.isfinite(scaling.value) and len(scaling.ranks) == len(source.frequencies):
        scaling = descend(source, scaling, effort=0.4 * effort, rate=0.05)
    return Found(source, scaling)


def _direct_search(source: DirectSearch, norms: Sequence[float], effort: float) -> Scaling:
    """The best start by its gain at a few frequencies, then descent; large blocks stop at a coarser scan."""
    count = len(source.frequencies)
    coarse = source.sweep > effort
    scanned = 2 if coarse else max(2, min(count, SCANNED, int(0.2 * effort / (40 * source.cost))))
    places = torch.linspace(0, count - 1, scanned).round().long().to(source.frequencies.device)
    form = source.form(source.frequencies[places])
    starts = starting_points(form, COARSE_SCAN if coarse else SCAN_ABOVE_MINIMUM) if form.z_hidden is None else []
    starts += layered_starting_points(form, form.layer_of_tie, norms[1:])
    gains = [gain(form, values) for values in starts]
    ranked = sorted(range(len(starts)), key=lambda index: float(gains[index].max()))
    if coarse:
        places = torch.linspace(0, count - 1, max(1, min(count - 1, SCANNED // 2))).round().long().to(places.device)
        wider = gain(source.form(source.frequencies[places]), starts[ranked[0]])
        return Scaling(starts[ranked[0]], float(wider.max()), wider)
    scaling = min(
        (source.evaluate(starts[index]) for index in ranked[: 1 if 4 * source.sweep > effort else 2]),
        key=lambda found: found.value,
    )
    return descend(source, scaling, effort=effort) if math.isfinite(scaling.value) else scaling


def _normalised(block: ResidualBlock, norms: Sequence[float]) -> list[float]:
    """Norms of the layers, each but the first times the width of the slopes before it."""
    widths = [2.0 if isinstance(s, GroupSort) else max(s[1], 0) - min(s[0], 0) for s in block.slopes]
    return [norm * width for norm, width in zip(norms, [1.0, *widths], strict=True)]
