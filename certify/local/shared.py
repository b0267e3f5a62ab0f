"""Search for multipliers that all rows of a layer share: their ellipsoid is to be small in the directions of all rows.

The result determines how tight `changes` is, never whether it is valid. At the best multipliers, the derivative of the
objective with respect to each of them is 0: over the rows' worst changes in the ellipsoid, the weighted sums of v^2 and
of v d agree. So each multiplier is repeatedly scaled by a power of the quotient of these sums.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustres.certify.local.changes import Changes, Factor, Multipliers, Targets

STEPS, LAST_STEPS = 3, 8
FIRST = 0.25  # initial share of the largest multipliers that are admissible for each neuron alone
POWER, LEAST_POWER = 0.7, 0.1
USUAL = 3.0  # added to both sums, relative to the mean, so that multipliers of unimportant neurons stay
NAMES = ("image", "hidden", "error", "inner")
ROWS = 192  # number of rows for which the multipliers of a layer are found
HALVINGS, SMALLER = 16, 0.4
SHARP = 4.0  # exponent that weights the worst rows of the output


@dataclass(eq=False)
class SharedSearch:
    """The `choice` of `Changes`: it chooses the multipliers of each place and stores them in `found`.

    starts: multipliers of an earlier search, by place, to begin with. latest: multipliers of the previous place.
    """

    starts: Mapping[int, Multipliers] = field(default_factory=dict)
    found: dict[int, Multipliers] = field(default_factory=dict)
    latest: Multipliers = field(default_factory=dict)

    def __call__(self, changes: Changes, place: int, targets: Targets) -> Multipliers:
        """Multipliers for intervals: all rows have the same weight, relative to their possible change; of every other
        one the lower bound counts."""
        count, parts = targets.image.shape[1], []
        picked = torch.linspace(0, count - 1, min(count, ROWS), device=targets.image.device).long()
        for side, some in ((1.0, picked[::2]), (-1.0, picked[1::2])):
            image, hidden, inner = (one[:, some] for one in (targets.image, targets.hidden, targets.inner))
            parts.append(changes.sided(Targets(image, hidden, targets.error[some], inner), side))
        targets = Targets(*(torch.cat([getattr(one, name) for one in parts], dim=-1) for name in NAMES))
        return self.chosen(changes, place, targets, None, STEPS)

    def chosen(
        self, changes: Changes, place: int, targets: Targets, margins: Tensor | None, steps: int = LAST_STEPS
    ) -> Multipliers:
        """margins: (R,) positive; the rows whose change is largest relative to their margin have the largest weight."""
        self.found[place] = {}
        if not len(changes.reach):
            return {}
        begun = self._begun(changes, self.starts.get(place, {}), 1) or self._begun(changes, self.latest, HALVINGS)
        if begun is None:
            return {}
        t, factor = begun
        steps -= place in self.starts
        best, merit, power = t, float("inf"), POWER
        for step in range(steps):
            value, ratio = _ratio(changes, targets, t, factor, margins)
            if value < merit:
                best, merit = t, value
            if step == steps - 1:
                break
            while (moved := changes.factor(t * ratio**power)) is None and power > LEAST_POWER:
                power /= 2
            if moved is None:
                break
            t, factor = t * ratio**power, moved
        self.found[place] = self.latest = _by_place(changes, best)
        return self.found[place]

    def _begun(self, changes: Changes, given: Multipliers, tries: int) -> tuple[Tensor, Factor] | None:
        """Admissible multipliers to start from: the given ones, and sufficiently small ones for layers without any."""
        if not given and tries == 1:
            return None
        t, step, new = changes.stacked(given), [], 0
        for place, free in changes.free.items():
            new += place not in given
            step.append(t.new_full((len(free),), 0.0 if place in given else float(new)))
        power = torch.cat(step)
        t = torch.where(power > 0, FIRST * t, t)
        for _ in range(tries):
            factor = changes.factor(t)
            if factor is not None:
                return t, factor
            t = t * SMALLER**power
        return None


def _ratio(
    changes: Changes, targets: Targets, t: Tensor, factor: Factor, margins: Tensor | None
) -> tuple[float, Tensor]:
    """The objective (smaller is better) and the factor by which each multiplier should grow."""
    root = factor.root[:, None]
    solved = torch.linalg.solve_triangular(factor.lower, changes.right(targets, factor.root), upper=False)
    square = (targets.image.square().sum(0) + solved.square().sum(0)).clamp_min(1e-30)
    v = torch.linalg.solve_triangular(factor.lower.T, solved, upper=True) / root
    # At the worst change, the gradients of q and of the row by v agree, which gives d without a product with X.
    d = 2 * v - (changes.hidden.T @ (t[:, None] * v) + 2 * targets.hidden) / t[:, None]
    if margins is None:
        value, weights = float(square.log().mean()), 1 / square
    else:
        shares = square.sqrt() / margins.to(square)
        value, weights = float(shares.max()), (shares / shares.max()) ** (2 * SHARP) / square
    squares, products = t * (v.square() @ weights), t * (v * d @ weights)
    usual = USUAL * products.abs().mean() + 1e-30
    ratio = (squares + usual) / (products.clamp_min(0) + usual)
    return value, torch.nan_to_num(ratio, nan=1.0).clamp(0.1, 10.0)


def _by_place(changes: Changes, t: Tensor) -> dict[int, Tensor]:
    """By activation, (n,) multipliers of all its coordinates; those without one in this search get the median."""
    found = {}
    parts = torch.split(t, [len(free) for free in changes.free.values()])
    for (place, free), part in zip(changes.free.items(), parts, strict=True):
        usual = float(part.median()) if len(part) else 0.0
        whole = t.new_full((math.prod(changes.program.steps[place].shape),), usual)
        whole[free] = part
        found[place] = whole
    return found
