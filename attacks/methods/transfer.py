"""Transfer: examples found on another model, verified on this one (Papernot et al. 2016)."""

from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem, in_parts
from robustres.errors import InputError


@dataclass(frozen=True, eq=False)
class Transfer(Attack):
    """Attack a surrogate and try its examples on the model: a threat model in which the attacker has another network.

    The surrogate's own predictions are attacked, even where they are wrong. The model is evaluated once per sample, and
    its gradients are not used; `steps` and `gradient_evaluations` of the result are those on the surrogate.

    surrogate: a classifier with the model's classes. attack: the attack on it, with the same threat.

    >>> from robustres.attacks import PGD
    >>> from robustres.threat import ThreatModel
    >>> threat = ThreatModel("linf", 8 / 255)
    >>> Transfer(threat, surrogate=torch.nn.Identity(), attack=PGD(threat)).name
    'transfer of pgd'
    """

    kind: ClassVar[str] = "transfer"
    follows_gradients: ClassVar[bool] = False

    _: KW_ONLY
    surrogate: nn.Module
    attack: Attack

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack.threat != self.threat:
            raise InputError(
                f"the attack on the surrogate must have the threat of the transfer, {self.threat.norm} "
                f"{self.threat.eps:g}, got {self.attack.threat.norm} {self.attack.threat.eps:g}"
            )

    @property
    def name(self) -> str:
        return f"transfer of {self.attack.name}"

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        attack = replace(self.attack, batch_size=self.batch_size)
        for rows in in_parts((~ledger.fooled).nonzero().flatten(), self.batch_size):
            images = problem.x[rows]
            with torch.no_grad():
                answers = self.surrogate(images)
            if answers.shape != (len(rows), clean.shape[1]):
                raise InputError(
                    f"the surrogate must return {clean.shape[1]} logits per image as the model does, got "
                    f"{tuple(answers.shape)} for {len(rows)} images"
                )
            targets = problem.classes[rows] if problem.targeted else None
            labels = answers.argmax(dim=1)
            found = attack(self.surrogate, images, labels, indices=problem.index[rows], targets=targets)
            ledger.count(rows, steps=found.steps, gradients=found.gradient_evaluations)
            ledger.offer(rows, found.examples)
