"""The reduced form of a block on one torus: what the search of T and the proof ask of it."""

import math

import torch
from torch import Tensor

from robustres.certify.blocks.direct_search import COARSE_MARGINS, MARGINS
from robustres.certify.blocks.incremental_form import EXACT_SIDE, SMOOTHED
from robustres.certify.blocks.multiplier_form import Scaling
from robustres.certify.blocks.reduced_block import Inequality, ReducedBlock
from robustres.certify.fourier.torus import Torus, coarse_frequencies
from robustres.certify.norms.ritz_pair import top_ritz_pair
from robustres.certify.proof.largest_singular_value import proved_below, rayleigh_quotients

CHUNK_BYTES = 32 * 2**20
ACCURATE = 24  # frequencies whose gain is computed, of all; the others are ranked by a cheap guess
ROUNDS = 3  # of looking for frequencies that the guess has missed
COARSE_TOLERANCE = 1e-5
NEWTON_STEPS = 40
NEWTON_TOLERANCE = 1e-7
FAR = 1e4  # times the guess: where no finite gain is expected any more
SQUARABLE = 1e150  # lambda within this and its inverse can be squared


class ReducedForm:
    """A reduced block on one torus. Gains are estimates from below; `proved_value` alone is a bound."""

    def __init__(self, block: ReducedBlock, torus: Torus) -> None:
        self.block, self.torus = block, torus
        self.frequencies = coarse_frequencies(torus).to(block.device)
        self.overhead, self.cost, self._glance = _nominal_costs(block)

    @property
    def sweep(self) -> float:
        """Nominal seconds of a guess at every frequency."""
        return self.overhead + self._glance * len(self.frequencies)

    def chunks(self) -> tuple[Tensor, ...]:
        """All frequencies in pieces of bounded memory."""
        return torch.split(self.frequencies, max(1, CHUNK_BYTES // (16 * self.block.width**2)))

    def evaluate(self, values: Tensor, near: float) -> Scaling:
        """The gain with these multipliers, at the frequencies that seem critical at lambda = near, and at those that a
        factorisation then finds above it."""
        inequality = self._inequality(values, near)
        if inequality is None:
            return Scaling(values, math.inf, values.new_full((len(self.frequencies),), math.inf))
        ranks = torch.cat([rayleigh_quotients(inequality.gram.at(self.torus, part)) for part in self.chunks()])
        critical = ranks.topk(min(ACCURATE, len(ranks))).indices
        value = self.gain(values, self.frequencies[critical], near=near, limit=FAR * near)
        for _ in range(ROUNDS):
            above = self._inequality(values, value * (1 + COARSE_TOLERANCE))
            if above is None:
                break
            missed = ~torch.cat([self._proved(above, part) for part in self.chunks()])
            if not bool(missed.any()):
                break
            ranks = ranks + missed  # the descent looks at them first
            critical = torch.where(missed, ranks, -math.inf).topk(min(ACCURATE, int(missed.sum()))).indices
            value = max(value, self.gain(values, self.frequencies[critical], near=value, limit=FAR * near))
        return Scaling(values, value, ranks)

    def gain(self, values: Tensor, frequencies: Tensor, *, near: float, limit: float = math.inf) -> float:
        """The largest lambda at some frequencies, by Newton's method from `near`; infinite once it is above `limit`.

        N is concave in lambda, so steps come from below, but slowly beside a pole: every fourth one halves the bracket.
        """
        value, low, high = near, 0.0, math.inf
        for step in range(1, NEWTON_STEPS + 1):
            inequality = self._inequality(values, value)
            following = math.nan  # below the domain
            if inequality is not None:
                following = float(self._tangents(inequality, frequencies, 1)[0].max())
                if not following <= limit * (1 + NEWTON_TOLERANCE):
                    return math.inf
                if abs(following - value) <= NEWTON_TOLERANCE * value:
                    return following
            if following < value:
                high = min(high, value)
            else:
                low = max(low, value)
            if not low < following < high or (step % 4 == 0 and low > 0 and high < math.inf):
                following = 0.5 * (low + high)
            if not math.isfinite(following):
                return math.inf
            value = following
        return high

    def gain_slope(self, values: Tensor, frequencies: Tensor, *, near: float, sharpness: float) -> tuple[float, Tensor]:
        """The largest lambda, to first order about `near`, and the slope of a smooth maximum in log(values)."""
        inequality = self._inequality(values, near)
        if inequality is None:
            return math.inf, torch.zeros_like(values)
        gains, slopes = self._tangents(inequality, frequencies, SMOOTHED)
        shares = torch.softmax((sharpness * gains / gains.max()).flatten(), 0).reshape(gains.shape)
        slope = torch.cat([(part * shares[:, None]).sum((0, 2)) for part in slopes])
        parts = torch.split(slope, [part.shape[1] for part in slopes])
        folded = [part.reshape(-1, count).sum(0) for part, count in zip(parts, self.block.channels, strict=True)]
        return float(gains.max()), torch.cat(folded) * values

    def proved_value(self, values: Tensor, value: float, limit: float) -> float:
        """lambda, raised by the smallest margins that are proved at every frequency; infinite where none is.

        What holds at one frequency with a smaller value holds with a larger one, so no frequency is looked at again.
        """
        margins = MARGINS if self.block.width <= EXACT_SIDE else COARSE_MARGINS
        left = iter(margins)
        held = value * (1 + next(left))
        inequality = self._inequality(values, held)
        for part in self.chunks():
            while True:
                missed = part if inequality is None else part[~self._proved(inequality, part)]
                if not len(missed):
                    break
                if inequality is not None:
                    gains = self._tangents(inequality, missed[:ACCURATE], 1)[0]
                    if float(gains.max()) > held:
                        value, left = float(gains.max()), iter(margins)
                margin = next(left, None)
                if margin is None or not value < limit:
                    return math.inf
                held = max(held, value * (1 + margin))
                inequality = self._inequality(values, held)
        return held

    def _inequality(self, values: Tensor, value: float) -> Inequality | None:
        usable = 1 / SQUARABLE < value < SQUARABLE and bool(torch.isfinite(values).all())
        return self.block.inequality(values, value) if usable else None

    def _proved(self, inequality: Inequality, frequencies: Tensor) -> Tensor:
        """(F,) bool: where the inequality is proved."""
        return proved_below(inequality.gram.at(self.torus, frequencies), 1.0, inequality.gram.error)

    def _tangents(self, inequality: Inequality, frequencies: Tensor, count: int) -> tuple[Tensor, list[Tensor]]:
        """lambda (F, k) where the smallest eigenvalues of N vanish, to first order, and their slopes per unit of T."""
        grams = inequality.gram.at(self.torus, frequencies)
        if grams.shape[-1] <= EXACT_SIDE:
            tops, vectors = torch.linalg.eigh(grams)
            tops, vectors = tops[:, -count:], vectors[..., -count:]
        else:
            top, vector = top_ritz_pair(grams)
            tops, vectors = top[:, None], vector[..., None]
        hidden, before, squares = self.block.increments(inequality, self.torus, frequencies, vectors)
        value, above = inequality.value, inequality.value - self.block.floor
        gains = value + (tops - 1) / squares
        if above > 0:  # beyond the pole at the floor the tangent says nothing: the root of value, slope and pole
            rational = self.block.floor + above**2 * squares / (1 - tops + above * squares)
            gains = torch.where(gains > self.block.floor + 0.5 * above, gains, rational)
        slopes = [2 * (u.conj() * (z - u)).real / squares[:, None] for u, z in zip(hidden, before, strict=True)]
        return gains, slopes


def _nominal_costs(block: ReducedBlock) -> tuple[float, float, float]:
    """Seconds on a core of 2e10 operations: of one T and lambda, of the gain at one frequency, of a guess of it."""
    width = block.width
    taps = len(block.layers[-1].parts)
    entries = width**2 * (taps * (taps + 1) / 2 + taps + 13)
    products = 0.0
    outputs = block.shortcut.magnitude.shape[0]
    if not block.scalar_shortcut:
        products += outputs**3 + taps * outputs**2 * width + (taps + 1) ** 2 / 2 * width**2 * outputs
    if len(block.layers) == 3:
        middle = len(block.layers[1].parts)
        inner = block.layers[1].magnitude.shape[1]
        products += inner**3 + middle * inner**2 * width + (middle + 1) ** 2 / 2 * width**2 * inner
    lags = min(2 * taps, 13)
    assembly = lags * width**2 * 2.5e-9 + 2e-5  # bound by memory, as what follows
    eigen = 1e-4 + 8e-9 * width**3 if width <= EXACT_SIDE else 2e-7 * width**2
    return (
        2e-3 + entries * 3e-9 + 3 * products / 2e10,
        assembly + eigen,
        2 * assembly + 6e-8 * width**2 + 1e-10 * width**3,
    )
