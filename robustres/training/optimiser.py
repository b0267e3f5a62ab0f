"""The optimisers: one for all parameters, or a second one for those on the manifold."""

from typing import Any

import torch
from torch import nn

from robustres.training.bfloat16 import multiplies_bfloat16
from robustres.training.manifold import ManifoldAdam, enter_manifold, retract
from robustres.training.recipe import Recipe

AVERAGE_STEPS = 3  # Newton-Schulz steps that bring an average of nearby points back


class Optimiser:
    """The optimisers of a recipe behind one interface; the learning rates are those of the recipe times `scale`."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self._points = enter_manifold(model) if recipe.optimiser == "manifold" else []
        moved = {id(point.parameter) for point in self._points}
        rest = [(name, value) for name, value in model.named_parameters() if id(value) not in moved]
        slow = recipe.bias_learning_rate or recipe.learning_rate
        groups = [
            {"params": [value for name, value in rest if not name.endswith("bias")], "lr": recipe.learning_rate},
            {"params": [value for name, value in rest if name.endswith("bias")], "lr": slow},
        ]
        groups = [group for group in groups if group["params"]]
        self._optimisers: list[torch.optim.Optimizer] = []
        if recipe.optimiser == "adamw":
            self._optimisers.append(torch.optim.AdamW(groups, weight_decay=recipe.weight_decay))
        else:
            self._optimisers.append(
                torch.optim.NAdam(groups, weight_decay=recipe.weight_decay, decoupled_weight_decay=True)
            )
        if self._points:
            coarse = recipe.mixed_precision and multiplies_bfloat16(self._points[0].parameter.device)
            rate = recipe.manifold_learning_rate
            self._optimisers.append(ManifoldAdam(self._points, lr=rate, coarse=coarse))
        self._rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in self._optimisers]

    def scale(self, factor: float) -> None:
        """Set every learning rate to the recipe's times `factor`."""
        for optimiser, rates in zip(self._optimisers, self._rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = factor * rate

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for optimiser in self._optimisers:
            optimiser.zero_grad()

    def step(self) -> None:
        """Move all parameters."""
        for optimiser in self._optimisers:
            optimiser.step()

    def retract(self) -> None:
        """Bring the current values back onto the manifold, on which the average of several points does not lie."""
        for point in self._points:
            retract(point, AVERAGE_STEPS)

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of all optimisers, for an exact continuation."""
        return [optimiser.state_dict() for optimiser in self._optimisers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continue from `state_dict`."""
        for optimiser, state in zip(self._optimisers, states, strict=True):
            optimiser.load_state_dict(state)
