"""The base class of attacks: frozen settings that are called on a model and images."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from robustres.arguments import require_number
from robustres.at_hand import images_tensor, labels_tensor
from robustres.attacks.base import preflight
from robustres.attacks.base.ledger import Ledger
from robustres.attacks.base.problem import Problem
from robustres.attacks.base.result import AttackResult
from robustres.errors import DataError, InputError
from robustres.guard import random_state_kept, untouched
from robustres.precision import taking
from robustres.threat import NORMS, Norm, ThreatModel

Precision = Literal["model", "bfloat16"]
PROBED = 8  # number of images on which the model is checked before an attack


@dataclass(frozen=True)
class Attack(ABC):
    """Settings that all attacks share.

    threat: norm and eps in pixel units.
    seed: of all random numbers; each also depends on the sample's index and the restart.
    batch_size: number of samples on which the model is run at once.
    precision: of the search, either the model's own or bfloat16 autocast. Every success is verified in the model's own.
    allow_training_mode: attack a model in training mode as it is instead of refusing it.

    Each class states the `norms` for which it is defined, whether it `follows_gradients`, and whether it is a
    `minimum_norm` attack, which searches for the nearest example instead of any example within eps, so that one run
    with an unbounded threat serves every eps.

    A call leaves the model (the modes of its modules, gradients, buffers) and the global random state as they were,
    even if it raises.
    """

    kind: ClassVar[str]
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    follows_gradients: ClassVar[bool] = True
    minimum_norm: ClassVar[bool] = False

    threat: ThreatModel
    _: KW_ONLY
    seed: int = 0
    batch_size: int = 256
    precision: Precision = "model"
    allow_training_mode: bool = False

    @property
    def name(self) -> str:
        """The name of the attack in `make_attack`."""
        return self.kind

    def __post_init__(self) -> None:
        if self.threat.norm not in self.norms:
            raise InputError(f"{self.name} is defined for {', '.join(self.norms)}, not for {self.threat.norm}")
        self.require_counts("batch_size")
        if self.precision not in ("model", "bfloat16"):
            raise InputError(f"precision must be 'model' or 'bfloat16', got {self.precision!r}")

    def __call__(
        self,
        model: nn.Module,
        x: Any,
        y: Any,
        *,
        indices: Tensor | None = None,
        targets: Any = None,
        clean: Tensor | None = None,
    ) -> AttackResult:
        """Attack images x (N, C, H, W) in [0, 1] with labels y (N,): tensors, arrays or lists.

        indices: (N,) global sample numbers for the random numbers; 0, 1, ... if not given.
        targets: (N,) classes to reach; without them any wrong answer counts.
        clean: (N, K) this model's logits at x, if already known; the first few are compared with the model.

        The model is run as it is: if it takes images of another floating type (model.half(), model.double()), they are
        cast, and the cast is part of the function under attack.

        Raises: DataError for invalid images or labels; ModelError for a model that is in training mode, is on another
        device than the images, returns outputs of the wrong shape, answers at random, or whose answer to an image
        depends on the other images of its batch. Warns if the model has no gradients to follow.

        If the gradients of a batch do not fit into the accelerator's memory, the search continues with half the batch;
        if another part does not fit, the attack restarts with half the batch size. Neither changes the result. Raises
        torch.OutOfMemoryError if a single sample does not fit.
        """
        attack = self
        x, y = images_tensor(x), labels_tensor(y)
        targets = None if targets is None else labels_tensor(targets)
        while True:
            try:
                return attack._attacked(model, x, y, indices, targets, clean)
            except torch.OutOfMemoryError:
                if (size := min(attack.batch_size, len(x)) // 2) < 1:
                    raise
            torch.cuda.empty_cache()
            attack = replace(attack, batch_size=size)

    def _attacked(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        indices: Tensor | None,
        targets: Tensor | None,
        clean: Tensor | None,
    ) -> AttackResult:
        preflight.check_types(model)
        preflight.check_images(x, y, self.threat)
        preflight.check_mode(model, allowed=self.allow_training_mode)
        with _nothing_changed(model):
            problem = self._problem(taking(model, x), x, y, indices, targets)
            preflight.check_rounding(problem.taken, self.threat)
            ledger = Ledger(problem)
            if len(x):
                with preflight.mismatch_explained(model, x):
                    probe = problem.x[: min(PROBED, self.batch_size)]
                    answers = problem.first_answers(probe)
                    clean = self._clean(problem, clean)
                    preflight.check_logits(clean)
                    preflight.check_classes(clean.shape[1], problem.labels, targets)
                    self._try_out(problem, probe, answers, clean[: len(probe)])
                ledger.record_clean(clean)
                self.search(problem, ledger, clean)
            return ledger.result(self.batch_size)

    def _clean(self, problem: Problem, known: Tensor | None) -> Tensor:
        """Logits (N, K) at the images: the known ones if given, else those of the model."""
        if known is None:
            return problem.answers_in_batches(problem.x, self.batch_size)
        preflight.check_output(known, len(problem.x))
        return known.detach().to(problem.x.device)

    def _try_out(self, problem: Problem, probe: Tensor, answers: Tensor, clean: Tensor) -> None:
        """Check that the model is a function of one image and, for attacks that follow gradients, has gradients."""
        if not self.allow_training_mode:
            preflight.check_function(problem.answers, probe, answers, clean, roundoff=problem.roundoff())
        if self.follows_gradients:
            found = problem.gradient(probe, lambda logits: logits.square().sum(dim=1))
            preflight.warn_without_gradients(found.gradient[torch.isfinite(found.logits).all(dim=1)])

    def shared(self) -> dict[str, Any]:
        """The settings that all attacks share, except the threat: those of the members of an ensemble."""
        return {setting.name: getattr(self, setting.name) for setting in fields(Attack) if setting.name != "threat"}

    def require_counts(self, *names: str) -> None:
        """Raise InputError unless each of these settings is at least 1."""
        for name in names:
            require_number(name, getattr(self, name), least=1, whole=True)

    def require_budget(self) -> None:
        """Raise InputError if the threat is unbounded although the attack needs an eps."""
        if not math.isfinite(self.threat.eps):
            raise InputError(f"{self.name} needs a finite eps; for the nearest example use ldn, fab or deepfool")

    @abstractmethod
    def search(self, problem: Problem, ledger: Ledger, clean: Tensor) -> None:
        """Record adversarial examples of the problem in the ledger; `clean` are the logits at x."""

    def _problem(
        self, model: nn.Module, x: Tensor, y: Tensor, indices: Tensor | None, targets: Tensor | None
    ) -> Problem:
        index = torch.arange(len(x)) if indices is None else indices
        if index.shape != (len(x),):
            raise DataError(f"indices must have shape ({len(x)},), got {tuple(index.shape)}")
        wanted = y if targets is None else targets
        return Problem(
            model=model,
            x=x.detach().clone(),
            classes=wanted.to(x.device, torch.int64),
            labels=y.to(x.device, torch.int64),
            index=index.to(x.device, torch.int64),
            threat=self.threat,
            targeted=targets is not None,
            search_dtype=torch.bfloat16 if self.precision == "bfloat16" else None,
        )


@contextmanager
def _nothing_changed(model: nn.Module) -> Iterator[None]:
    """Freeze the model's parameters; restore the model and the random state on exit."""
    with torch.inference_mode(False), random_state_kept(), untouched(model):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        yield
