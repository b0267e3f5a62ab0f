"""The strong ensemble: aims to find at least what the standard ensemble finds, for a fraction of its passes.

Three ideas make it cheap. Most samples that can be fooled are fooled by PGD's adaptive search within a few steps.
Classes that are far out of reach to first order are skipped. And the effort spent on a sample depends on what is known
about it: only samples whose best margin came near zero get further rounds. Where the gradients of a sample mislead,
linear models fitted to the whole ball and random queries replace them.

No loss here depends on the scale of the logits, so a model whose logits are multiplied by 100 or 1/100 gets the same
verdicts.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.geometry.losses import LossName
from robustres.attacks.methods import apgd, apgd_targeted, linear_fit
from robustres.attacks.methods.apgd_targeted import APGDTargeted
from robustres.attacks.methods.fab import FAB, FabSearch
from robustres.attacks.methods.ldn import LDN, LdnSearch
from robustres.attacks.methods.pgd import PGD, AdaptivePgd
from robustres.attacks.methods.pgd_targeted import TowardsClass
from robustres.attacks.methods.refinement import Refinement
from robustres.attacks.methods.square import Square, SquareSearch
from robustres.attacks.search import engine
from robustres.attacks.search.class_distance import class_distances, nearest_first
from robustres.attacks.search.engine import Search
from robustres.attacks.search.targets import likely_targets
from robustres.errors import InputError

LOSSES: tuple[LossName, ...] = ("scaled-ce", "probability-margin", "margin")  # of successive rounds
BETWEEN_SEEDS = 7919  # far enough apart that the seeds of two runs do not overlap
FAB_STEPS, FAB_CLASSES = 20, 2
LDN_STEPS, LDN_SHARPNESS, FAB_STEPS_L1 = 120, (3.0, 8.0, 20.0), 60  # in l1, where FAB aims at every class
FIT_QUERIES, REFINEMENTS, REFINING_STEPS = 600, 2, 30  # where gradients mislead
# Signs of misleading gradients: a class is nearer than this times eps to first order but was not reached; or an attack
# without gradients raises the margin above the best so far by more than this share of the clean margin.
TOO_NEAR, RAISED = 0.5, 0.1


@dataclass(frozen=True)
class Strong(Attack):
    """Adaptive PGD on three losses, APGD, FAB (in l1 also LDN), targeted PGD and APGD towards classes within reach,
    then random search; where gradients mislead, linear models fitted to the ball.

    steps: of every PGD search; APGD takes twice as many. rounds: of untargeted PGD from new starts (in l1: of
        APGD, and one fewer, because searches along the boundary find more there).
    targets: how many of the most likely wrong classes are considered. reach: only classes whose first-order distance is
        at most this many times eps are aimed at.
    contested: a sample gets further rounds if its best margin came within this share of the clean margin.
    queries: of random search for every remaining sample. masked_queries: the same for samples most of whose gradients
        are zero, or for which random search does better.
    If the caller names targets, the searches aim at these alone.
    """

    kind: ClassVar[str] = "strong"

    _: KW_ONLY
    steps: int = 50
    rounds: int = 3
    targets: int = 9
    reach: float = 2.0
    contested: float = 0.35
    queries: int = 100
    masked_queries: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_counts("steps", "rounds", "targets", "queries", "masked_queries")
        self.require_budget()
        if not (self.reach > 0 and 0 <= self.contested <= 1):
            raise InputError(
                f"reach must be positive and contested in [0, 1], got {self.reach} and {self.contested}; "
                "reach=math.inf aims at every class, contested=1 goes on with every sample"
            )

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        margins = ledger.loss.clone()
        everyone = torch.ones_like(ledger.steps)
        self._run(ledger, self._untargeted(problem, 0), everyone)
        aims, away = self._classes(problem, ledger, clean)
        within = (away <= self.reach * self.threat.eps).sum(dim=1)
        near = (away < TOO_NEAR * self.threat.eps).any(dim=1) & (self.threat.norm != "l1")
        misled = near | ledger.without_gradients()
        self._boundary(problem, ledger, clean, aims, margins)
        trusted = ~self._without_gradients(problem, ledger, margins, misled)
        if self.threat.norm != "l1":
            self._run(ledger, TowardsClass(problem, self._pgd(0), aims), within * trusted)
            self._run(ledger, self._apgd(problem, 0), trusted)
        for number in range(1, self.rounds - (self.threat.norm == "l1")):
            self._run(ledger, self._untargeted(problem, number), trusted & (ledger.loss > self.contested * margins))
        if not problem.targeted and self.threat.norm != "l1":  # in l1, FAB has aimed at every class
            towards = APGDTargeted(self.threat, steps=2 * self.steps, give_up=True, **self.shared())
            within = within * trusted * (ledger.loss > self.contested * margins)
            self._run(ledger, apgd_targeted.search(problem, towards, aims), within)
        stuck = ledger.without_gradients()
        self._random_search(problem, ledger, margins, stuck)

    def _classes(self, problem: Problem, ledger: Ledger, clean: Tensor) -> tuple[Tensor, Tensor]:
        """The classes to aim at (N, T), nearest first, and their first-order distances; or the caller's targets."""
        if problem.targeted:
            return problem.classes[:, None], torch.full((len(clean), 1), math.inf, device=clean.device)
        likely = likely_targets(clean, problem.classes, self.targets)
        return nearest_first(likely, class_distances(problem, ledger, likely, self.batch_size))

    def _boundary(self, problem: Problem, ledger: Ledger, clean: Tensor, aims: Tensor, margins: Tensor) -> None:
        """Steps along linearised boundaries, which cross ripples of the loss that trap PGD; in l1 they find most."""
        everyone = torch.ones_like(ledger.steps)
        if self.threat.norm != "l1":
            fab, nearest = FAB(self.threat, steps=FAB_STEPS, **self.shared()), aims[:, :FAB_CLASSES]
            self._run(ledger, FabSearch(problem, fab, nearest), nearest.shape[1] * everyone)
            return
        ldn = LDN(self.threat, steps=LDN_STEPS, sharpness=LDN_SHARPNESS, **self.shared())
        self._run(ledger, LdnSearch(problem, ldn, clean), len(LDN_SHARPNESS) * everyone)
        fab = FAB(self.threat, steps=FAB_STEPS_L1, give_up=True, **self.shared())
        self._run(ledger, FabSearch(problem, fab, aims), aims.shape[1] * (ledger.loss > margins / 2))

    def _without_gradients(self, problem: Problem, ledger: Ledger, margins: Tensor, misled: Tensor) -> Tensor:
        """Fit linear models for the misled samples; return those (N,) whose margin they raise above the searches'."""
        if self.threat.norm == "l1" or not bool((misled & ~ledger.fooled).any()):
            return torch.zeros_like(misled)
        reached, seed = ledger.loss.clone(), self.seed
        linear_fit.offer(problem, ledger, misled, queries=FIT_QUERIES, seed=seed, batch_size=self.batch_size)
        refinement = Refinement(problem, ledger, steps=REFINING_STEPS, seed=seed)
        self._run(ledger, refinement, REFINEMENTS * misled)
        return misled & (ledger.loss > reached - RAISED * margins)

    def _random_search(self, problem: Problem, ledger: Ledger, margins: Tensor, misled: Tensor) -> None:
        """A few queries for every remaining sample, many for those whose gradients mislead."""
        reached = ledger.loss.clone()
        few, many = (Square(self.threat, steps=n, **self.shared()) for n in (self.queries, self.masked_queries))
        self._run(ledger, SquareSearch(problem, few), torch.ones_like(ledger.steps))
        self._run(ledger, SquareSearch(problem, many), misled | (ledger.loss > reached - RAISED * margins))

    def _untargeted(self, problem: Problem, number: int) -> Search:
        """The search of a round: adaptive PGD, or in l1 APGD, whose sparse steps find far more there."""
        return self._apgd(problem, number) if self.threat.norm == "l1" else AdaptivePgd(problem, self._pgd(number))

    def _apgd(self, problem: Problem, number: int) -> Search:
        settings = self._pgd(number)
        kind = apgd.search_class(self.threat.norm)
        return kind(problem, steps=2 * self.steps, seed=settings.seed, loss=settings.loss)

    def _pgd(self, number: int) -> PGD:
        """The settings of the PGD searches of a round."""
        shared = self.shared() | {"seed": self.seed + BETWEEN_SEEDS * number}
        return PGD(self.threat, steps=self.steps, loss=LOSSES[number % len(LOSSES)], **shared)

    def _run(self, ledger: Ledger, search: Search, restarts: Tensor) -> None:
        engine.run(ledger.problem, search, ledger=ledger, restarts=restarts.long(), batch_size=self.batch_size)
