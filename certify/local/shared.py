"""Multipliers that all rows of a layer share: which ellipsoid around the changes is small in all of their directions.

A search: what it finds makes `changes` tight or loose, never wrong. At the best multipliers a small change of one of
them gains for some rows what it loses for others. With y the worst change of a row by the ellipsoid, that is where the
sums over the rows of v^2 and of v d agree, so each multiplier is scaled by a power of their quotient, again and again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustres.certify.local.changes import Changes, Factor, Multipliers, Targets

STEPS, LAST_STEPS = 3, 8
FIRST = 0.25  # of what would be the largest multipliers if every neuron stood alone
POWER, LEAST_POWER = 0.7, 0.1
USUAL = 3.0  # what both sums are raised by, relative to the mean: a neuron that matters little keeps its multiplier
ROWS = 192  # that the multipliers of a layer are found for
HALVINGS, SMALLER = 16, 0.4
SHARP = 4.0  # how much the worst row counts at the output


@dataclass(eq=False)
class SharedSearch:
    """Chooses the multipliers of each place, and keeps them: the `choice` of `Changes`.

    starts: of an earlier search, from which this one goes on. latest: of the place before.
    """

    starts: Mapping[int, Multipliers] = field(default_factory=dict)
    found: dict[int, Multipliers] = field(default_factory=dict)
    latest: Multipliers = field(default_factory=dict)

    def __call__(self, changes: Changes, place: int, targets: Targets) -> Multipliers:
        """For intervals: all rows count the same, relative to what they can change."""
        count = targets.image.shape[1]
        if count > ROWS:
            picked = torch.linspace(0, count - 1, ROWS, device=targets.image.device).long()
            image, hidden, inner = (side[:, picked] for side in (targets.image, targets.hidden, targets.inner))
            targets = Targets(image, hidden, targets.error[picked], inner)
        return self.chosen(changes, place, targets, None, STEPS)

    def chosen(
        self, changes: Changes, place: int, targets: Targets, margins: Tensor | None, steps: int = LAST_STEPS
    ) -> Multipliers:
        """margins: (R,) positive, of the rows, of which the one that is nearest to losing its own counts most."""
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
        """Admissible multipliers: where those given are, small enough ones of the layers that have none are, too."""
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
    """What is to be made small, and by how much each multiplier is off."""
    root = factor.root[:, None]
    solved = torch.linalg.solve_triangular(factor.lower, changes.right(targets, factor.root), upper=False)
    square = (targets.image.square().sum(0) + solved.square().sum(0)).clamp_min(1e-30)
    v = torch.linalg.solve_triangular(factor.lower.T, solved, upper=True) / root
    # At the worst change the derivative of q by v is that of the row, which gives d without a product with the image.
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
    """By activation, (n,) of all its coordinates: what has none in this search gets what is usual there."""
    found = {}
    parts = torch.split(t, [len(free) for free in changes.free.values()])
    for (place, free), part in zip(changes.free.items(), parts, strict=True):
        usual = float(part.median()) if len(part) else 0.0
        whole = t.new_full((math.prod(changes.program.steps[place].shape),), usual)
        whole[free] = part
        found[place] = whole
    return found
