"""The standard ensemble (Croce and Hein 2020, AutoAttack): four attacks in turn, each on the samples still robust."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.methods.apgd import APGD
from robustres.attacks.methods.apgd_targeted import APGDTargeted
from robustres.attacks.methods.fab import FAB
from robustres.attacks.methods.square import Square
from robustres.attacks.search.targets import refuse_targeted


@dataclass(frozen=True)
class Ensemble(Attack):
    """APGD on cross-entropy, targeted APGD, targeted FAB and Square, with the published iteration counts.

    steps: of APGD, targeted APGD and FAB. queries: of Square. targets: classes aimed at, at most classes - 1.
    exhaustive: spend every step of every attack, as published. False abandons a search once its extrapolated progress
        falls short (see `search.success_forecast`): faster, but this heuristic may miss an example.
    """

    kind: ClassVar[str] = "ensemble"

    _: KW_ONLY
    steps: int = 100
    queries: int = 5000
    targets: int = 9
    exhaustive: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_budget()
        self.members()

    def members(self) -> list[Attack]:
        """The attacks in the order in which they run."""
        shared = self.shared()
        return [
            APGD(self.threat, steps=self.steps, **shared),
            APGDTargeted(self.threat, steps=self.steps, targets=self.targets, give_up=not self.exhaustive, **shared),
            FAB(self.threat, steps=self.steps, targets=self.targets, give_up=not self.exhaustive, **shared),
            Square(self.threat, steps=self.queries, give_up=not self.exhaustive, **shared),
        ]

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        refuse_targeted(problem, self.name)
        for attack in self.members():
            attack.search(problem, ledger, clean)
