"""The objective of one training step, as a module, so that DistributedDataParallel sees every use of a parameter."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustres.threat import ThreatModel
from robustres.training import losses
from robustres.training.bfloat16 import multiplies_bfloat16
from robustres.training.body import Body
from robustres.training.inner_maximisation import worst_in_ball
from robustres.training.margins import pairwise_radii
from robustres.training.recipe import Recipe
from robustres.training.whole_norm import WholeNorm

WorstLogits = Callable[[Tensor, Tensor, Tensor, Tensor | float, float], Tensor]
WORST_LOGITS: dict[str, WorstLogits] = {
    "emma": losses.emma,
    "gloro": losses.gloro,
    "offset": losses.offset,
    "annealing": losses.gloro,
}


class Objective(nn.Module):
    """The recipe's loss of a batch, and the measures for the validation split.

    Raises InputError if the recipe's loss does not fit the model.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.norm: Body | WholeNorm | None = None
        if recipe.certified or recipe.lipschitz_weight:
            self.norm = WholeNorm(model, image_shape) if recipe.bound == "whole" else Body(model)

    def forward(self, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        """The loss (a scalar) of images (N, C, H, W) at this step's eps."""
        recipe = self.recipe
        constant = self.norm() if self.norm is not None else None
        if recipe.certified:
            loss = self._margin_loss(images, labels, eps, constant)
        elif recipe.loss == "clean":
            loss = functional.cross_entropy(self._logits(images), labels)
        else:
            loss = self._adversarial_loss(images, labels, eps, generator)
        if recipe.lipschitz_weight and constant is not None:
            loss = loss + recipe.lipschitz_weight * constant.log()
        return loss

    def validate(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Per sample: correct, and for margin losses the estimated certified radius at least the recipe's eps."""
        logits = self.model(images)
        correct = logits.argmax(dim=1) == labels
        if not self.recipe.certified or self.norm is None:
            return correct, None
        radii = pairwise_radii(logits, labels, self.norm.distances(labels), self.norm()).amin(dim=1)
        return correct, radii >= self.recipe.eps

    def _logits(self, images: Tensor) -> Tensor:
        coarse = self.recipe.mixed_precision and multiplies_bfloat16(images.device)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=coarse):
            logits: Tensor = self.model(images)
        return logits.float()

    def _margin_loss(self, images: Tensor, labels: Tensor, eps: float, constant: Tensor | None) -> Tensor:
        assert self.norm is not None
        assert constant is not None
        logits = self._logits(images)
        worst = WORST_LOGITS[self.recipe.loss](logits, labels, self.norm.distances(labels), constant, eps)
        if self.recipe.loss == "annealing":
            return losses.annealed_cross_entropy(worst, labels, self.recipe.temperature, self.recipe.annealing)
        return losses.certified_cross_entropy(worst, labels, self.recipe.temperature)

    def _adversarial_loss(self, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        threat = ThreatModel(self.recipe.norm, eps)
        training = self.model.training
        self.model.eval()
        reference = self.model(images).detach()

        def ascent(points: Tensor) -> Tensor:
            logits = self.model(points)
            if self.recipe.loss == "trades":
                return losses.divergence(reference, logits)
            return functional.cross_entropy(logits, labels, reduction="none")

        steps = self.recipe.attack_steps
        points = worst_in_ball(ascent, images, threat, steps=steps, generator=generator)
        self.model.train(training)
        if self.recipe.loss == "trades":
            return losses.trades(self._logits(images), self._logits(points), labels, self.recipe.trades_beta)
        return functional.cross_entropy(self._logits(points), labels)
