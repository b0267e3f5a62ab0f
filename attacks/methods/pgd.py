"""Projected gradient descent (Madry et al. 2018)."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry import ball
from robustres.attacks.geometry.losses import LossName
from robustres.attacks.geometry.randomness import sample_keys
from robustres.attacks.search import engine
from robustres.attacks.search import repeated_iterates as orbits
from robustres.attacks.search import success_forecast as prospects
from robustres.attacks.search.engine import Slots
from robustres.attacks.search.gradient import GradientSearch
from robustres.attacks.search.half_cosine import half_cosine
from robustres.errors import InputError

Schedule = Literal["adaptive", "cosine", "constant"]
# Adaptive schedule: how many times progress is judged, the smallest number of steps in between, and the multiple of its
# present speed credited to a search; the factors by which the cap is divided when success is out of reach, and when the
# iterates repeat.
WINDOWS, LEAST_WINDOW, SAFETY = 12, 3, 1.5
HOPELESS_CUT, CLOSED_CUT = 4.0, 2.0
LEAST_SHARE = 0.1  # of the first step: a search whose cap falls below this share ends


class _Pgd(GradientSearch):
    """Steps whose length depends only on the age of the search."""

    def __init__(self, problem: Problem, settings: "PGD") -> None:
        super().__init__(problem, settings.loss)
        self.settings = settings
        ages = torch.arange(settings.steps, dtype=torch.float64)
        fall = half_cosine(ages, settings.steps)
        if settings.schedule == "constant":
            fall = torch.ones_like(fall)
        self.sizes = (settings.step_length * fall).to(problem.x.device, problem.dtype)

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        slots["points"] = self.start(slots, slots["restart"]) if self.settings.random_start else slots["x"].clone()

    def step(self, slots: Slots, loss: Tensor, gradient: Tensor) -> Tensor:
        slots["points"] = self.moved(slots, gradient, self.sizes[slots["age"]])
        return slots["age"] + 1 >= self.settings.steps

    def start(self, slots: Slots, number: Tensor) -> Tensor:
        """A random point of each ball, a different one for each number (B,)."""
        keys = sample_keys(self.settings.seed, slots["index"], number)
        return ball.random_start(keys, slots["x"], slots["low"], slots["high"], self.problem.threat)

    def moved(self, slots: Slots, gradient: Tensor, sizes: Tensor) -> Tensor:
        """The next points: a step of length `sizes` (B,) along the gradient, and back into the ball."""
        threat = self.problem.threat
        moved = ball.ascended(slots["points"], gradient, sizes, threat.norm)
        return ball.project_(moved, slots["x"], slots["low"], slots["high"], threat)


class _UntilClosed(_Pgd):
    """Steps of constant length, until the iterates repeat."""

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        orbits.begin(slots)

    def switched(self, slots: Slots, mask: Tensor) -> None:
        orbits.forget(slots, mask)

    def step(self, slots: Slots, loss: Tensor, gradient: Tensor) -> Tensor:
        closed = orbits.advance(slots, self.moved(slots, gradient, self.sizes[slots["age"]]))
        return closed | (slots["age"] + 1 >= self.settings.steps)


class AdaptivePgd(_UntilClosed):
    """Steps that decay along half a cosine, under a cap that is lowered whenever the search stalls.

    A search stalls when the best margin, extrapolated from its recent progress, would not become positive in the
    remaining steps, or when its iterates repeat; in the latter case it continues from a new random point if it started
    at one. After its first stall a search maximises the margin instead of cross-entropy, which takes a different path.
    """

    def begin(self, slots: Slots) -> None:
        super().begin(slots)
        prospects.begin(slots)
        slots["cap"] = torch.full_like(slots["sample"], self.settings.step_length, dtype=slots["x"].dtype)

    def switched(self, slots: Slots, mask: Tensor) -> None:
        super().switched(slots, mask)
        prospects.set_mark(slots, mask, torch.full_like(slots["mark"], -torch.inf))

    def step(self, slots: Slots, loss: Tensor, gradient: Tensor) -> Tensor:
        sizes = torch.minimum(self.sizes[slots["age"]], slots["cap"])
        closed = orbits.advance(slots, self.moved(slots, gradient, sizes))
        hopeless = prospects.hopeless(
            slots,
            self.progress(slots),
            steps=self.settings.steps,
            marks=WINDOWS,
            least=LEAST_WINDOW,
            safety=SAFETY,
        )
        stalled = closed | hopeless
        if bool(stalled.any()):
            slots["cap"] = slots["cap"] / torch.where(hopeless, HOPELESS_CUT, torch.where(closed, CLOSED_CUT, 1.0))
            prospects.set_mark(slots, stalled, self.progress(slots))
            orbits.forget(slots, stalled & ~slots["by_margin"])
            slots["by_margin"] = slots["by_margin"] | stalled
            self._start_anew(slots, closed)
        given_up = stalled & (slots["cap"] < LEAST_SHARE * self.settings.step_length)
        return given_up | (slots["age"] + 1 >= self.settings.steps)

    def progress(self, slots: Slots) -> Tensor:
        """The value that must become positive, (B,): the best margin so far."""
        return slots["kept_margin"]

    def _start_anew(self, slots: Slots, closed: Tensor) -> None:
        if self.settings.random_start and len(rows := closed.nonzero().flatten()):
            chosen = Slots({name: slots[name][rows] for name in ("index", "restart", "age", "x", "low", "high")})
            number = chosen["restart"] + self.settings.restarts * (chosen["age"] + 1)
            slots["points"].index_copy_(0, rows, self.start(chosen, number))


@dataclass(frozen=True)
class PGD(Attack):
    """Steps along the steepest direction, each followed by the projection into the ball.

    steps: updates per restart.
    step_size: length of the first step in pixel units; None ties it to eps and steps (see `step_length`).
    schedule: "adaptive", "cosine" or "constant", see below.
    restarts: number of searches for a sample that is not fooled, each from another point.
    random_start: start at a random point of the ball instead of at the image.
    loss: "ce", "margin", "dlr", or one of the scale-invariant losses "scaled-ce" and "probability-margin".

    Schedules. cosine: step lengths fall to 0 along half a cosine; a search that finds nothing uses all its steps.
    constant: one step length; a search ends early when its point, or its last two points, repeat exactly, because
    nothing new can follow: the result is the same as with all steps. adaptive: the cosine with a cap, which is halved
    when the points repeat (the search then continues from a new random point), and divided by four when the best margin
    would not become positive in the remaining steps even at one and a half times its recent rate of progress. A search
    that stalls in either way continues with the margin loss, and ends when the cap falls below a tenth of the first
    step. The forecast is a heuristic: it saves most of the gradients spent on samples that survive, but may miss an
    example that the cosine schedule finds; the margin loss finds many that cross-entropy does not.
    """

    kind: ClassVar[str] = "pgd"

    _: KW_ONLY
    steps: int = 20
    step_size: float | None = None
    schedule: Schedule = "adaptive"
    restarts: int = 1
    random_start: bool = True
    loss: LossName = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_budget()
        self.require_counts("steps", "restarts")
        if self.restarts > 1 and not self.random_start:
            raise InputError(f"{self.restarts} restarts from the same point are the same run; set random_start=True")
        if self.schedule not in get_args(Schedule):
            raise InputError(f"schedule must be one of {', '.join(get_args(Schedule))}, got {self.schedule!r}")
        if self.step_size is not None and not self.step_size > 0:
            raise InputError(f"step_size must be positive and in pixel units, got {self.step_size}")

    @property
    def step_length(self) -> float:
        """Length of the first step: as set, or else the default of the schedule.

        adaptive and cosine: eps, so that most samples that can be fooled are fooled in the first few steps; the lengths
        of the cosine schedule sum to eps * steps / 2. constant: 2.5 eps / steps (Madry et al.), which can cross the
        ball from any start.
        """
        if self.step_size is not None:
            return self.step_size
        return self.threat.eps if self.schedule != "constant" else 2.5 * self.threat.eps / self.steps

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        closing = {"adaptive": AdaptivePgd, "constant": _UntilClosed}
        # A model that draws random numbers may answer differently at a point visited before.
        kind = _Pgd if self.allow_training_mode else closing.get(self.schedule, _Pgd)
        search = kind(problem, self)
        engine.run(problem, search, ledger=ledger, restarts=self.restarts, batch_size=self.batch_size)
