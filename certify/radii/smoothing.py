"""Randomised smoothing: a certificate for the classifier that predicts by majority vote under Gaussian noise."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from robustres.arguments import require_number
from robustres.certify.proof.bound import Guarantee
from robustres.certify.proof.clopper_pearson import lower_confidence_bound
from robustres.certify.radii.radius_column import RadiusColumn
from robustres.errors import InputError, ModelError
from robustres.guard import evaluation_mode
from robustres.numerics import rounded_down
from robustres.precision import taking
from robustres.results import SMOOTHED

ABSTAIN = -1
# The quantile function of scipy (Cephes) is accurate to a few units in the last place; this error is assumed.
_QUANTILE_ROUNDINGS = 2**12
# Draws are generated in blocks of this many, so that the noise does not depend on the batch size.
_BLOCK = 16


@dataclass(frozen=True, eq=False)
class SmoothedColumn(RadiusColumn):
    """Radii of a smoothed classifier, with the votes on which they are based.

    selected: (N,) int64, the class with the most votes among the selection draws, even if the classifier abstains.
    votes: (N,) int64, the number of estimation draws classified as that class.
    probability_lower: (N,) float64, the lower confidence bound on the probability of that class.
    """

    selected: Tensor
    votes: Tensor
    probability_lower: Tensor

    @property
    def abstained(self) -> Tensor:
        """(N,) bool: True if no class is shown to have more than half of the votes."""
        return self.prediction == ABSTAIN


@dataclass(frozen=True)
class RandomisedSmoothing:
    """Certify the *smoothed* classifier g(x) = the class that the network predicts most often at x + sigma N(0, I).

    g is a different function from the network: its radii say nothing about the network, must not be compared with
    attacks on the network, and never share a column with radii of the network. To use the certificate, deploy g.

    Guaranteed: with probability at least 1 - alpha over the noise, for each sample separately, g is constant within the
    l2 radius, or the radius is 0 (abstention). The noise is assumed to be Gaussian and x + noise to be exact: the
    rounding of the noisy images is not accounted for (Voracek and Hein 2023 construct inputs for which this matters).
    Noisy images leave [0, 1] on purpose, and the network must accept them as they are.

    sigma: standard deviation of the noise, in pixel units.
    selection_samples, estimation_samples: n0 and n of the paper. The largest possible radius is sigma *
    Phi^-1(alpha^(1/n)).
    alpha: failure probability for each sample.
    seed: together with the index of a sample it determines the sample's noise, on a given kind of device.
    batch_size: noisy images per forward pass, rounded up to a multiple of 16; the noise does not depend on it.

    Source: Cohen, Rosenfeld and Kolter (2019), Certified Adversarial Robustness via Randomized Smoothing, theorem 1
    (with p_B = 1 - p_A) and the procedure CERTIFY.
    """

    sigma: float
    selection_samples: int = 100
    estimation_samples: int = 10_000
    alpha: float = 0.001
    seed: int = 0
    batch_size: int = 1000

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise InputError(f"sigma must be positive and in pixel units, got {self.sigma:g}; usual values: 0.12 to 1")
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha must lie strictly between 0 and 1, got {self.alpha:g}; the usual value is 0.001")
        for name in ("selection_samples", "estimation_samples", "batch_size"):
            require_number(name, getattr(self, name), least=1, whole=True)
        require_number("seed", self.seed, whole=True)

    @property
    def name(self) -> str:
        """Name of the certificate, which is also the name of the certified function."""
        return f"{SMOOTHED}(sigma={self.sigma:g})"

    @property
    def guarantee(self) -> Guarantee:
        """The guarantee of each radius separately."""
        return Guarantee(self.alpha)

    def __call__(self, model: nn.Module, x: Tensor, *, indices: Tensor | None = None) -> SmoothedColumn:
        """Radii of the smoothed classifier at images (N, C, H, W).

        indices: (N,) int64, the samples' numbers in their data set; default 0 .. N - 1.
        """
        numbers = range(len(x)) if indices is None else indices.tolist()
        with evaluation_mode(model), torch.no_grad():
            network = taking(model, x)
            rows = [self._certify(network, image, number) for image, number in zip(x, numbers, strict=True)]
        selected, votes, lower, radius = zip(*rows, strict=True) if rows else ((), (), (), ())
        radii = torch.tensor(radius, dtype=torch.float64)
        classes = torch.tensor(selected, dtype=torch.int64)
        return SmoothedColumn(
            radius=radii,
            prediction=torch.where(radii > 0, classes, torch.full_like(classes, ABSTAIN)),
            source=(self.name,) * len(rows),
            function=self.name,
            norm="l2",
            guarantee=self.guarantee,
            selected=classes,
            votes=torch.tensor(votes, dtype=torch.int64),
            probability_lower=torch.tensor(lower, dtype=torch.float64),
        )

    def _certify(self, model: nn.Module, image: Tensor, number: int) -> tuple[int, int, float, float]:
        """CERTIFY for one image: the selected class, its votes, the bound on its probability, the radius."""
        selection = self._votes(model, image, number, "selection")
        top = int(selection.argmax()) if int(selection.sum()) else 0
        votes = int(self._votes(model, image, number, "estimation")[top])
        lower = lower_confidence_bound(votes, self.estimation_samples, self.alpha)
        return top, votes, lower, smoothed_radius(lower, self.sigma)

    def _votes(self, model: nn.Module, image: Tensor, number: int, stage: Literal["selection", "estimation"]) -> Tensor:
        """(classes,) int64: number of votes for each class; a non-finite output votes for none."""
        votes: Tensor | None = None
        for noise in self._noise(image, number, stage):
            logits = model(image + self.sigma * noise)
            if logits.ndim != 2:
                raise ModelError(f"the model must return logits of shape (N, classes), got {tuple(logits.shape)}")
            answers = logits.argmax(dim=1)[torch.isfinite(logits).all(dim=1)]
            counted = torch.bincount(answers, minlength=logits.shape[1]).cpu()
            votes = counted if votes is None else votes + counted
        assert votes is not None  # there is at least one draw
        return votes

    def _noise(self, image: Tensor, number: int, stage: Literal["selection", "estimation"]) -> Iterator[Tensor]:
        """Standard normal draws in batches; the two stages are independent, and so are the samples."""
        first, total = (0, self.selection_samples) if stage == "selection" else (1, self.estimation_samples)
        state = np.random.SeedSequence((self.seed, number, first)).generate_state(2, np.uint32)
        seed = int(state[0]) << 31 | int(state[1]) >> 1
        generator = torch.Generator(device=image.device).manual_seed(seed)
        blocks_per_batch = -(-self.batch_size // _BLOCK)
        for start in range(0, total, blocks_per_batch * _BLOCK):
            missing = min(blocks_per_batch * _BLOCK, total - start)
            blocks = [
                torch.randn((_BLOCK, *image.shape), generator=generator, dtype=image.dtype, device=image.device)
                for _ in range(-(-missing // _BLOCK))
            ]
            yield torch.cat(blocks)[:missing]


def smoothed_radius(probability_lower: float, sigma: float) -> float:
    """sigma * Phi^-1(p), rounded down; 0 where p is at most one half.

    >>> smoothed_radius(0.5, 1.0)
    0.0
    """
    if not 0.5 < probability_lower < 1:
        return 0.0
    return rounded_down(sigma * float(ndtri(probability_lower)), _QUANTILE_ROUNDINGS)
