"""Any attack of the torchattacks package behind the same interface, with the same guarantees on its result.

What torchattacks returns is moved into the ball and evaluated again on the model as given. It re-seeds torch's global
generator, draws from Python's and NumPy's, and switches modules between training and evaluation: all of that is
undone. Its random numbers come per batch, so unlike ours they depend on the batch size.
"""

import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from robustres.attacks.base.attack import Attack
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem, in_parts
from robustres.errors import InputError, MissingExtraError

PREFIX = "torchattacks:"
TEN_CLASSES = ("JSMA",)  # they aim at (label + 1) % 10
NORM_NAMES = {"linf": "Linf", "l2": "L2"}
# The norm of the ball of attacks that take eps but no norm; linf for all others.
OTHER_BALLS = {"PGDL2": "l2", "PGDRSL2": "l2"}


def torchattacks_names() -> tuple[str, ...]:
    """The attacks of torchattacks by class name; MissingExtraError where the package is not installed."""
    package = _package()
    wrappers = set(package.__wrapper__)
    return tuple(sorted(name for name in package.__all__ if name not in wrappers))


def _package() -> Any:
    """The torchattacks package, an extra because it pins an old release of requests with which many packages
    conflict."""
    try:
        import torchattacks
    except ImportError as error:
        raise MissingExtraError("an attack of torchattacks", "torchattacks") from error
    return torchattacks


class _Counted(nn.Module):
    """The model, counting how often it was run, with and without a gradient."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem, self.model = problem, problem.model
        self.runs = self.gradients = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        self.gradients += int(torch.is_grad_enabled() and x.requires_grad)
        return self.problem.run(x)


@dataclass(frozen=True)
class Torchattacks(Attack):
    """The attack `method` of torchattacks, with its own arguments in `arguments`.

    If the class takes eps (or max_epsilon), norm, seed or n_classes and `arguments` does not set them, they come from
    the threat, the seed and the model. The example of an attack without an eps counts only if it still fools the model
    after it has been moved into the ball.
    """

    kind: ClassVar[str] = "torchattacks"
    follows_gradients: ClassVar[bool] = False  # some do, some do not

    _: KW_ONLY
    method: str = "PGD"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in torchattacks_names():
            raise InputError(f"torchattacks has no attack {self.method!r}; it has {', '.join(torchattacks_names())}")
        known = self._parameters()
        if unknown := sorted(set(self.arguments) - set(known)):
            raise InputError(f"torchattacks.{self.method} has no setting {unknown[0]!r}; it has {', '.join(known)}")
        norm = self.threat.norm
        if "norm" in known and norm not in NORM_NAMES:
            raise InputError(f"torchattacks.{self.method} is defined for linf and l2, not for {norm}")
        if "norm" not in known and "eps" in known and norm != OTHER_BALLS.get(self.method, "linf"):
            raise InputError(f"torchattacks.{self.method} works in {OTHER_BALLS.get(self.method, 'linf')}, not {norm}")

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.method}"

    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        if self.method in TEN_CLASSES and clean.shape[1] != 10:
            raise InputError(
                f"torchattacks.{self.method} assumes 10 classes, the model has {clean.shape[1]}; use apgd-t or pgd"
            )
        samples = (~ledger.fooled).nonzero().flatten()
        for batch in in_parts(samples, self.batch_size):
            model = _Counted(problem)
            model.training = problem.model.training
            with _seeded(self.seed + int(problem.index[batch[0]])), torch.enable_grad():
                attack = self._build(model, clean.shape[1], problem)
                points = attack(problem.x[batch], problem.classes[batch]).detach()
            ledger.evaluations[batch] += model.runs
            ledger.gradients[batch] += model.gradients
            ledger.steps[batch] += model.gradients
            ledger.offer(batch, points.to(problem.x.device).nan_to_num(0.5))

    def _parameters(self) -> list[str]:
        return [name for name in inspect.signature(getattr(_package(), self.method)).parameters if name != "model"]

    def _build(self, model: nn.Module, classes: int, problem: Problem) -> Any:
        offered = {
            "eps": self.threat.eps,
            "max_epsilon": self.threat.eps,
            "norm": NORM_NAMES.get(self.threat.norm),
            "seed": self.seed,
            "n_classes": classes,
        }
        known = self._parameters()
        arguments = {name: value for name, value in offered.items() if name in known} | dict(self.arguments)
        attack = getattr(_package(), self.method)(model, **arguments)
        attack.set_device(problem.x.device)
        if self.allow_training_mode:
            attack.set_model_training_mode(model.training, True, True)
        if problem.targeted:
            if "targeted" not in attack.supported_mode:
                raise InputError(f"torchattacks.{self.method} has no targeted form; use pgd or apgd with targets=")
            attack.set_mode_targeted_by_label(quiet=True)
        return attack


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed every global generator; restore those of Python and NumPy on exit (the caller's guard restores torch's)."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
