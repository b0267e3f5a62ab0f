"""The training loop: seeded, resumable, selected on the validation split, never on the test set."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robustres.data import ImageSet, load_data
from robustres.errors import InputError, ModelError
from robustres.models import Normalised, ResidualNet
from robustres.threat import ThreatModel, require_width
from robustres.training.augmentation import augmented
from robustres.training.distributed import World, world
from robustres.training.history import Epoch, History
from robustres.training.manifold import free_state, leave_manifold
from robustres.training.objective import Objective
from robustres.training.optimiser import Optimiser
from robustres.training.progress_file import load_state, save_state
from robustres.training.recipe import Recipe
from robustres.training.schedule import eps_factor, learning_rate_factor

VALIDATION_BATCH = 1024


def train(
    model: nn.Module,
    train_set: ImageSet | Any,
    validation_set: ImageSet | Any | None,
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    folder: str | Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    """Train the model in place and leave it with the weights of the epoch that the recipe keeps.

    model: any classifier for "clean", "adversarial" and "trades"; for the certified margin losses a `ResidualNet` (also
        inside `Normalised`), or with the recipe's `bound` "whole" any network of linear layers, activations and sorts.
        It is moved to `device` and left in evaluation mode.
    train_set, validation_set: image sets, or images and labels in memory as accepted by `load_data`. Without a
        validation set, for which the recipe must keep the last epoch, the accuracies of the history are NaN.
    folder: where the state is stored after each epoch. A run that was killed continues from there and ends with the
        same weights as an uninterrupted one (on a CPU, bit for bit).
    on_epoch: called after each epoch, for a progress bar or `tensorboard_logger`; in the first process only.
    Under torchrun every batch is split among the processes.
    Deterministic on a CPU: the same model, data and recipe give the same weights.
    Raises InputError where model, loss or an interrupted run do not fit, ModelError where the loss is not finite.
    """
    learnt = train_set if isinstance(train_set, ImageSet) else load_data(train_set)
    watched = (
        validation_set if validation_set is None or isinstance(validation_set, ImageSet) else load_data(validation_set)
    )
    if watched is None and recipe.keep != "last":
        raise InputError("without a validation set no epoch can be selected; keep the last one (keep = last)")
    require_width(ThreatModel(recipe.norm, recipe.eps), math.prod(learnt.image_shape))
    where = torch.device(device)
    with world(where) as processes:
        run = _Run(model.to(where), learnt, watched, recipe, processes)
        return run.complete(None if folder is None else Path(folder), on_epoch)


@dataclass
class _Run:
    """The moving parts of one training run."""

    model: nn.Module
    train_set: ImageSet
    validation_set: ImageSet | None
    recipe: Recipe
    world: World
    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.device = next(self.model.parameters()).device
        self.objective = Objective(self.model, recipe, self.train_set.image_shape).to(self.device)
        parallel = self.world.size > 1
        self.parallel = DistributedDataParallel(self.objective) if parallel else self.objective
        self.optimiser = Optimiser(self.model, recipe)
        self.average = copy.deepcopy(self.model.state_dict()) if recipe.ema else None
        self.per_epoch = math.ceil(len(self.train_set) / recipe.batch_size)
        self.images, self.labels = (part.to(self.device) for part in (self.train_set.images, self.train_set.labels))

    def complete(self, folder: Path | None, on_epoch: Callable[[Epoch], None] | None) -> History:
        """All remaining epochs; the best weights are put into the model."""
        start = perf_counter()
        if folder is not None:
            self._resume(folder)
        while len(self.epochs) < self.recipe.epochs and not self._exhausted():
            loss = self._one_epoch(len(self.epochs))
            self._record(loss, stored=folder is not None)
            if self.world.rank == 0:
                if folder is not None:
                    save_state(folder, self._state())
                if on_epoch is not None:
                    on_epoch(self.epochs[-1])
        leave_manifold(self.model)
        self.model.load_state_dict(self.best)
        self.model.eval()
        return History(tuple(self.epochs), self.best_epoch, perf_counter() - start)

    def _one_epoch(self, number: int) -> float:
        """Mean loss over the samples of this process."""
        recipe = self.recipe
        self.objective.train()
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + number)
        order = torch.randperm(len(self.images), generator=generator)
        total, seen = 0.0, 0
        for position, batch in enumerate(torch.split(order, recipe.batch_size)):
            own = self.world.share(batch)
            if len(batch) < self.world.size:
                continue
            step, steps = number * self.per_epoch + position, recipe.epochs * self.per_epoch
            self.optimiser.scale(learning_rate_factor(step, steps, recipe.warmup))
            # Channels last: the layout in which convolutions of few positions and many channels run fastest.
            images = augmented(self.images[own], recipe, generator).contiguous(memory_format=torch.channels_last)
            eps = (recipe.budget or recipe.eps) * eps_factor(step, steps, recipe.eps_warmup)
            loss = self.parallel(images, self.labels[own], eps, generator)
            if not torch.isfinite(loss):
                raise ModelError(f"the loss is {loss.item()} in epoch {number + 1}; lower learning_rate, raise warmup")
            self.optimiser.zero_grad()
            (loss * len(own) * self.world.size / len(batch)).backward()
            if math.isfinite(recipe.clip_norm):
                nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
            self.optimiser.step()
            self._update_average()
            total, seen = total + loss.item() * len(own), seen + len(own)
        return total / seen

    def _update_average(self) -> None:
        if self.average is None:
            return
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - self.recipe.ema)
                else:
                    self.average[name].copy_(value)

    def _record(self, loss: float, *, stored: bool) -> None:
        """Validate the weights that would be kept, and keep them if they are the best so far, or the last.

        stored: the state is stored after this epoch, with the weights to keep; else those of the last epoch suffice.
        """
        own = copy.deepcopy(self.model.state_dict()) if self.average is not None else None
        if self.average is not None:
            self.model.load_state_dict(self.average)
            self.optimiser.retract()
        epoch = Epoch(len(self.epochs) + 1, loss, *self._validate())
        last = self.recipe.keep == "last"
        if last or not self.epochs or epoch.score > max(before.score for before in self.epochs):
            self.best_epoch = epoch.epoch
            if stored or not last or epoch.epoch == self.recipe.epochs:
                self.best = free_state(self.model)
        self.epochs.append(epoch)
        if own is not None:
            self.model.load_state_dict(own)

    def _validate(self) -> tuple[float, float]:
        """Clean accuracy, and certified accuracy at the recipe's eps by the estimated norms (else NaN)."""
        self.objective.eval()
        if self.validation_set is None:
            return math.nan, math.nan
        correct, certified = 0, 0
        with torch.no_grad():
            for batch in torch.split(torch.arange(len(self.validation_set)), VALIDATION_BATCH):
                images, labels = self.validation_set.images[batch], self.validation_set.labels[batch]
                right, safe = self.objective.validate(images.to(self.device), labels.to(self.device))
                correct += int(right.sum())
                certified += 0 if safe is None else int(safe.sum())
        samples = len(self.validation_set)
        return correct / samples, certified / samples if self.recipe.certified else math.nan

    def _exhausted(self) -> bool:
        """Whether the patience is used up."""
        return 0 < self.recipe.patience <= len(self.epochs) - self.best_epoch

    def _identity(self) -> dict[str, Any]:
        network = self.model.model if isinstance(self.model, Normalised) else self.model
        described = network.architecture.as_dict() if isinstance(network, ResidualNet) else type(network).__name__
        return {
            "recipe": self.recipe.as_dict(),
            "train_set": self.train_set.sha256,
            "validation_set": None if self.validation_set is None else self.validation_set.sha256,
            "model": described,
        }

    def _state(self) -> dict[str, Any]:
        return {
            "identity": self._identity(),
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }

    def _resume(self, folder: Path) -> None:
        state = load_state(folder, self._identity())
        if state is None:
            return
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.best, self.best_epoch = state["average"], state["best"], state["best_epoch"]
        self.epochs = [Epoch(**row) for row in state["epochs"]]
