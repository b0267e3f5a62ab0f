"""The training loop: seeded, selected on the validation split, never on the test set."""

import copy
import math
from collections.abc import Callable, Iterator
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.data import ImageSet
from robustres.errors import InputError, ModelError
from robustres.models import Normalised, ResidualNet
from robustres.training import losses
from robustres.training.history import Epoch, History
from robustres.training.margins import pairwise_radii, row_distances
from robustres.training.recipe import Recipe
from robustres.training.schedule import eps_factor, learning_rate_factor


def train(
    model: nn.Module,
    train_set: ImageSet,
    validation_set: ImageSet,
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    on_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    """Train the model in place and leave it with the weights of its best epoch on the validation split.

    model: any classifier for the loss "clean"; a non-expansive `ResidualNet` (also inside `Normalised`) for the
        certified margin losses. It is moved to `device` and left in evaluation mode.
    on_epoch: called after each epoch, for a progress bar.
    Deterministic on a CPU: the same model, data and recipe give the same weights.
    Raises InputError where model and loss do not fit, ModelError where the loss stops being finite.
    """
    certified = recipe.loss != "clean"
    if certified:
        _require_constrained(model, recipe.loss)
    start = perf_counter()
    model.to(device)
    images, labels = train_set.images.to(device), train_set.labels.to(device)
    optimiser = torch.optim.NAdam(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, decoupled_weight_decay=True
    )
    per_epoch = math.ceil(len(images) / recipe.batch_size)
    generator = torch.Generator().manual_seed(recipe.seed)
    steps, step = recipe.epochs * per_epoch, 0
    epochs: list[Epoch] = []
    best: dict[str, Tensor] = {}
    for number in range(1, recipe.epochs + 1):
        model.train()
        total = 0.0
        for batch in _batches(len(images), recipe.batch_size, generator):
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * learning_rate_factor(step, steps, recipe.warmup)
            loss = _loss(model, images[batch], labels[batch], recipe, recipe.eps * eps_factor(step, steps))
            if not torch.isfinite(loss):
                raise ModelError(f"the loss is {loss.item()} in epoch {number}; lower learning_rate or raise warmup")
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += loss.item() * len(batch)
            step += 1
        epochs.append(Epoch(number, total / len(images), *_validate(model, validation_set, recipe, certified)))
        if not best or epochs[-1].score >= max(epoch.score for epoch in epochs):
            best, best_epoch = copy.deepcopy(model.state_dict()), number
        if on_epoch is not None:
            on_epoch(epochs[-1])
    model.load_state_dict(best)
    model.eval()
    return History(tuple(epochs), best_epoch, perf_counter() - start)


def _batches(samples: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Index batches of one epoch in a new random order."""
    return iter(torch.split(torch.randperm(samples, generator=generator), batch_size))


def _loss(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, eps: float) -> Tensor:
    logits: Tensor = model(images)
    if recipe.loss == "clean":
        return functional.cross_entropy(logits, labels)
    worst = {"emma": losses.emma, "gloro": losses.gloro}[recipe.loss]
    head, body = _head_and_body(model)
    distances = row_distances(head, labels)
    return losses.certified_cross_entropy(worst(logits, labels, distances, body, eps), labels, recipe.temperature)


def _validate(model: nn.Module, data: ImageSet, recipe: Recipe, certified: bool) -> tuple[float, float]:
    """Clean accuracy, and certified accuracy at the recipe's eps by the estimated norms (NaN where not constrained)."""
    model.eval()
    device = next(model.parameters()).device
    correct, robust = 0, 0
    with torch.no_grad():
        for batch in torch.split(torch.arange(len(data)), 1024):
            labels = data.labels[batch].to(device)
            logits = model(data.images[batch].to(device))
            correct += int((logits.argmax(dim=1) == labels).sum())
            if certified:
                head, body = _head_and_body(model)
                radii = pairwise_radii(logits, labels, row_distances(head, labels), body).amin(dim=1)
                robust += int((radii >= recipe.eps).sum())
    return correct / len(data), robust / len(data) if certified else math.nan


def _head_and_body(model: nn.Module) -> tuple[nn.Linear, float]:
    """The linear head, and a bound by construction of the Lipschitz constant before it in pixel units."""
    if isinstance(model, Normalised):
        head, body = _head_and_body(model.model)
        return head, body / float(model.std.min())
    assert isinstance(model, ResidualNet)
    return model.head, 1.0


def _require_constrained(model: nn.Module, loss: str) -> None:
    network = model.model if isinstance(model, Normalised) else model
    if not isinstance(network, ResidualNet) or not network.non_expansive:
        raise InputError(
            f"the loss {loss!r} needs a network of constrained blocks (residual_net(block='linear' or 'orthogonal')); "
            "train others with loss='clean'"
        )
