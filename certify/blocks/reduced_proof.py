"""The smallest lambda that given multipliers prove for a reduced block at every frequency of a torus."""

import math

import torch
from torch import Tensor

from robustres.certify.blocks.reduced_block import ReducedBlock
from robustres.certify.fourier.torus import Torus, coarse_frequencies
from robustres.certify.proof.largest_singular_value import proved_below, rayleigh_quotients, ritz_values

CHUNK_BYTES = 32 * 2**20
ATTEMPTS = 12  # values of lambda that are tried
FIRST_EXCESS, LEAST_GROWTH, LARGEST_GROWTH = 1e-6, 2e-6, 0.1  # relative, of lambda
LOOKED_AT = 24  # frequencies whose eigenvalues determine the increase of lambda
SQUARABLE = 1e150  # lambda between this and its inverse can be squared


def proved_square(
    block: ReducedBlock, torus: Torus, multipliers: Tensor, *, near: float, limit: float
) -> tuple[float, Tensor]:
    """lambda, about `near` or larger, infinite if none below `limit` is proved, and the frequencies (F, 2) at which
    `near` was too small, the worst first.

    What holds at a frequency for one value also holds for every larger value, so no frequency is checked again.
    """
    frequencies = coarse_frequencies(torus).to(block.device)
    left, missed = frequencies, frequencies
    value, before = near * (1 + FIRST_EXCESS), (0.0, math.nan)
    for attempt in range(ATTEMPTS):
        usable = 1 / SQUARABLE < value < min(SQUARABLE, limit) and bool(torch.isfinite(multipliers).all())
        gram = block.gram(multipliers, value) if usable else None
        if not usable:
            break
        if gram is None:
            value *= 1 + min(10.0**attempt * FIRST_EXCESS, LARGEST_GROWTH)
            continue
        unproved, tops = [], []
        for part in torch.split(left, max(1, CHUNK_BYTES // (16 * block.width**2))):
            grams = gram.at(torus, part)
            open_ = ~proved_below(grams, 1.0, gram.error)
            if bool(open_.any()):
                guesses = rayleigh_quotients(grams[open_])
                worst = guesses.topk(min(LOOKED_AT, len(guesses))).indices
                unproved.append(part[open_][guesses.argsort(descending=True)])
                tops.append(float(ritz_values(grams[open_][worst]).max()))
        left = torch.cat(unproved) if unproved else left[:0]
        missed = left if attempt == 0 else missed
        if not len(left):
            return value, missed
        before, value = (value, max(tops)), _next(before, (value, max(tops)))
    return math.inf, missed


def _next(before: tuple[float, float], now: tuple[float, float]) -> float:
    """The lambda at which the largest eigenvalue, which decreases with lambda, reaches 1, by the secant method."""
    value, top = now
    growth = 2 * (top - 1)
    if before[1] > top and value > before[0]:
        growth = (top - 1) * (value - before[0]) / (before[1] - top) / value
    return value * (1 + min(max(1.02 * growth, LEAST_GROWTH), LARGEST_GROWTH))


def glance_cost(block: ReducedBlock, count: int) -> float:
    """Nominal seconds of one check of `count` frequencies."""
    width, outputs = block.width, block.shortcut.magnitude.shape[0]
    taps = len(block.layers[-1].parts)
    products = 0.0
    if not block.scalar_shortcut:
        products += outputs**3 + taps * outputs**2 * width + (taps + 1) ** 2 / 2 * width**2 * outputs
    if len(block.layers) == 3:
        middle, inner = len(block.layers[1].parts), block.layers[1].magnitude.shape[1]
        products += inner**3 + middle * inner**2 * width + (middle + 1) ** 2 / 2 * width**2 * inner
    entries = width**2 * (taps * (taps + 1) / 2 + taps + 13)
    each = 2 * min(2 * taps, 13) * width**2 * 2.5e-9 + 4e-5 + 6e-8 * width**2 + 1e-10 * width**3
    return 2e-3 + entries * 3e-9 + 3 * products / 2e10 + count * each
