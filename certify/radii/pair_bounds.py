"""Bounds for pairs of classes on the differences of two logits, improved where they decide a sample's radius."""

import math
from collections import Counter

import torch
from torch import Tensor

from robustres.certify.bounds.whole_network import WholeNetwork


class PairBounds:
    """A symmetric matrix (classes, classes) of l2 bounds on z_i - z_j, and the elimination that can improve them.

    effort: nominal seconds for all pairs together. If all pairs are affordable, all are bounded, so that the result
    does not depend on the samples; otherwise those that decide the radii of the most samples are.
    """

    def __init__(self, bounds: Tensor, whole: WholeNetwork, effort: float) -> None:
        self.bounds, self.whole, self.effort = bounds, whole, effort
        self._done: set[tuple[int, int]] = set()

    def __call__(self, label: int) -> Tensor:
        """(classes,): the bounds on the logit of this class minus every other logit."""
        return self.bounds[label]

    def refine_all(self) -> bool:
        """Bound every pair if the effort allows; return whether it did."""
        classes = len(self.bounds)
        pairs = [(i, j) for i in range(classes) for j in range(i)]
        if self.whole.obstacle() or len(pairs) * self.whole.pair_cost > self.effort:
            return False
        for i, j in pairs:
            self._bound(i, j)
        return True

    def refine_for(self, logits: Tensor) -> None:
        """Bound the pairs that decide these samples (N, classes), until none is left or the effort is used up."""
        left = 0 if self.whole.obstacle() else int(self.effort / self.whole.pair_cost)
        while left > 0:
            pair = self._deciding(logits)
            if pair is None:
                return
            self._done.add(pair)
            self._bound(*pair)
            left -= 1

    def _bound(self, i: int, j: int) -> None:
        known = float(self.bounds[i, j])
        found = min(self.whole.pair(i, j, known=known), known)
        self.bounds[i, j] = self.bounds[j, i] = found

    def _deciding(self, logits: Tensor) -> tuple[int, int] | None:
        """The pair that decides the radius of the most samples and has not been bounded yet."""
        label = logits.argmax(dim=1)
        gap = logits.gather(1, label[:, None]) - logits
        ratio = (gap / self.bounds[label]).nan_to_num(math.inf)
        ratio.scatter_(1, label[:, None], math.inf)
        smallest, other = ratio.min(dim=1)
        usable = torch.isfinite(smallest) & (smallest > 0)
        pairs = zip(label[usable].tolist(), other[usable].tolist(), strict=True)
        count = Counter((max(pair), min(pair)) for pair in pairs)
        for pair, _ in count.most_common():
            if pair not in self._done:
                return pair
        return None
