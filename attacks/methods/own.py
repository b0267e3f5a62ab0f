"""A user's own attack, with the guarantees of every other: its images are moved into the ball, verified and counted."""

import inspect
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.search.targets import refuse_targeted
from robustres.errors import InputError


@dataclass(frozen=True)
class OwnAttack(Attack):
    """An attack that proposes images: `propose(model, x, y)` returns (N, C, H, W), or something that has `examples`.

    The proposed images are moved into the ball and evaluated again on the model as given; a mistake in `propose` can
    weaken the attack but never make its result wrong. If `propose` takes an argument `indices`, it receives the
    samples' numbers in their data set; random numbers should be drawn from these, so that results do not depend on the
    batch.
    called: its name in tables.

    >>> from robustres.threat import ThreatModel
    >>> OwnAttack(ThreatModel("linf", 0.1), propose=lambda model, x, y: 1 - x, called="negative").name
    'negative'
    """

    kind: ClassVar[str] = "own"
    follows_gradients: ClassVar[bool] = False

    _: KW_ONLY
    propose: Callable[..., Any]
    called: str = "own"

    @property
    def name(self) -> str:
        return self.called

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        refuse_targeted(problem, self.name)
        numbered = "indices" in inspect.signature(self.propose).parameters
        for rows in torch.split((~ledger.fooled).nonzero().flatten(), self.batch_size):
            more = {"indices": problem.index[rows]} if numbered else {}
            found = self.propose(problem.model, problem.x[rows].clone(), problem.labels[rows].clone(), **more)
            images = getattr(found, "examples", found)
            if not isinstance(images, Tensor) or images.shape != problem.x[rows].shape:
                got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
                raise InputError(
                    f"the attack {self.name} must return images of shape {tuple(problem.x[rows].shape)}, got {got}"
                )
            ledger.offer(rows, images.detach().to(problem.x.device).nan_to_num())
