"""Square attack (Andriushchenko et al. 2020): random search with square patches, without gradients.

Each proposal changes one square window of the image and is kept if the margin loss does not fall. The windows shrink
according to a fixed schedule. Examples found where gradient attacks fail are a sign of masked gradients.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry.ball import copy_rows
from robustres.attacks.geometry.randomness import below, integers, sample_keys, words
from robustres.attacks.geometry.window import window_positions
from robustres.attacks.methods import square_windows
from robustres.attacks.search import engine
from robustres.attacks.search import success_forecast as prospects
from robustres.attacks.search.engine import Search, Slots
from robustres.threat import Norm

BLOCK = 32  # number of proposals whose random words are computed at once
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of the share of pixels, in a search of 10,000 steps


def window_sides(steps: int, first_share: float, shape: tuple[int, ...], norm: Norm) -> list[int]:
    """Side of the window at each step for images of shape (C, H, W)."""
    smallest = 1 if norm == "linf" else 3
    sides = []
    for step in range(steps):
        progress = int(step / steps * 10_000)
        share = first_share / 2 ** sum(progress > mark for mark in HALVINGS)
        side = max(round(math.sqrt(share * shape[-1] * shape[-2])), smallest)
        if norm != "linf" and side % 2 == 0:
            side += 1
        sides.append(min(side, shape[-1], shape[-2]))
    return sides


class SquareSearch(Search):
    uses_gradient = False
    keeps_misses = False

    def __init__(self, problem: Problem, settings: "Square") -> None:
        self.problem, self.settings = problem, settings
        self.shape = tuple(problem.x.shape[1:])
        sides = window_sides(settings.steps, settings.first_share, self.shape, problem.threat.norm)
        self.sides = torch.tensor([*sides, sides[-1]], device=problem.x.device)

    def begin(self, slots: Slots) -> None:
        slots["keys"] = sample_keys(self.settings.seed, slots["index"], slots["restart"])
        slots["points"] = self._start(slots)
        slots["best"] = slots["points"].clone()
        slots["words"] = torch.zeros_like(slots["keys"])[:, None, None].repeat(1, BLOCK, 4 + self.shape[0])
        prospects.begin(slots)
        slots["best_loss"] = torch.full_like(slots["sample"], -torch.inf, dtype=slots["x"].dtype)

    def loss(self, logits: Tensor, slots: Slots) -> Tensor:
        return self.problem.margin(logits, slots["classes"])

    def move(self, slots: Slots, logits: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        accepted = (loss >= slots["best_loss"]).nonzero().flatten()
        copy_rows(slots["best"], slots["points"], accepted)
        slots["best_loss"] = torch.maximum(slots["best_loss"], loss.to(slots["best_loss"].dtype))
        slots["points"] = slots["best"].clone()
        self._draw(slots)
        for chosen, side in _by_side(self.sides[slots["age"]]):
            self._propose(slots, chosen, side)
        over = slots["age"] + 1 >= self.settings.steps
        if self.settings.give_up:
            over = over | prospects.hopeless(slots, slots["best_loss"], steps=self.settings.steps, marks=10)
        return over

    def nearest_miss(self, slots: Slots) -> tuple[Tensor, Tensor]:
        return slots["best"], slots["best_loss"]

    def _draw(self, slots: Slots) -> None:
        """Draw random words for the proposals of slots without any left: a corner (two in l2 and l1) and signs."""
        if len(due := (slots["age"] % BLOCK == 0).nonzero().flatten()):
            draws = slots["age"][due, None] + torch.arange(1, BLOCK + 1, device=due.device)
            keys = slots["keys"][due, None].expand_as(draws)
            fresh = words(keys.flatten(), (4 + self.shape[0],), draw=draws.flatten())
            slots["words"][due] = fresh.reshape(len(due), BLOCK, -1)

    def _start(self, slots: Slots) -> Tensor:
        threat, shape = self.problem.threat, self.shape
        if threat.norm != "linf":
            return square_windows.start(slots["keys"], slots["x"], threat)
        up = integers(slots["keys"], 2, (shape[0], 1, shape[2])).bool().expand(-1, -1, shape[1], -1)
        return torch.where(up, slots["high"], slots["low"])

    def _propose(self, slots: Slots, chosen: Tensor, side: int) -> None:
        """Change one window of each chosen slot's points."""
        (channels, height, width), points = self.shape, slots["points"]
        extent = torch.tensor([height - side + 1, width - side + 1] * 2 + [2] * channels, device=chosen.device)
        drawn = below(extent, slots["words"][chosen, slots["age"][chosen] % BLOCK])
        if (threat := self.problem.threat).norm != "linf":
            corners, signs = drawn[:, :4], drawn[:, 4:] * 2 - 1
            points[chosen] = square_windows.propose(points[chosen], slots["x"][chosen], corners, signs, side, threat)
            return
        window = window_positions(chosen, drawn[:, 0], drawn[:, 1], self.shape, side)
        up = drawn[:, 4:, None, None] > 0
        points.put_(window, torch.where(up, slots["high"].take(window), slots["low"].take(window)))


def _by_side(sides: Tensor) -> list[tuple[Tensor, int]]:
    """The slots grouped by the side of their window: pairs of positions and side."""
    return [((sides == side).nonzero().flatten(), side) for side in sorted(set(sides.tolist()))]


@dataclass(frozen=True)
class Square(Attack):
    """Random search on the margin loss; needs only the logits, no gradients.

    steps: proposals, each one forward pass. first_share: share of the pixels that the first windows cover.
    restarts: independent searches. give_up: stop early when the margin is not expected to close.
    """

    kind: ClassVar[str] = "square"
    follows_gradients: ClassVar[bool] = False

    _: KW_ONLY
    steps: int = 5000
    restarts: int = 1
    first_share: float = 0.8
    give_up: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("steps", "restarts")
        self.require_budget()

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        engine.run(
            problem, SquareSearch(problem, self), ledger=ledger, restarts=self.restarts, batch_size=self.batch_size
        )
