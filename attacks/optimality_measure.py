"""How close each attack comes to the best of all attacks at equal cost: the measure of AttackBench (Cinà et al. 2024).

An attack's robustness curve is the share of the samples for which it finds no example within eps, as a function of eps.
The best curve uses the nearest example found by any of the attacks. Local optimality is 1 minus the area between the
two curves divided by the area between the clean accuracy and the best curve, up to the eps at which the best curve
falls to 0: 1 for an attack that is the best on every sample, 0 for one that finds nothing. Optimality is the mean over
networks.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from robustres.errors import InputError
from robustres.numerics import distance
from robustres.threat import Norm


class BudgetSpentError(Exception):
    """Raised inside an attack when its evaluations are used up."""


class Metered(nn.Module):
    """A model for attacks on one image that counts its evaluations and keeps the nearest example it was shown.

    x: (1, C, H, W) the image in [0, 1]; label: its class; budget: evaluations of both kinds together. Each image of a
    batch counts as one evaluation. If too few are left for a call, including its gradient where one can be requested,
    BudgetSpentError is raised. Only images in [0, 1] count as examples; every one that the attack evaluates counts,
    whatever the attack returns.
    """

    def __init__(self, model: nn.Module, x: Tensor, label: int, norm: Norm, budget: int) -> None:
        super().__init__()
        self.model, self.x, self.label, self.norm, self.budget = model, x.detach(), label, norm, budget
        self.forwards = self.backwards = 0
        self.nearest = torch.inf

    def forward(self, points: Tensor) -> Tensor:
        passes = 2 if torch.is_grad_enabled() and points.requires_grad else 1
        if self.forwards + self.backwards + passes * len(points) > self.budget:
            raise BudgetSpentError
        self.forwards += len(points)
        logits: Tensor = self.model(points)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        shown = points.detach()
        valid = ((shown >= 0) & (shown <= 1)).flatten(1).all(dim=1)
        wrong = valid & (logits.detach().argmax(dim=1) != self.label) & torch.isfinite(logits.detach()).all(dim=1)
        if bool(wrong.any()):
            self.nearest = min(self.nearest, float(distance(shown[wrong].double() - self.x.double(), self.norm).min()))
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def nearest_within(
    attack: Callable[[nn.Module, Tensor, Tensor], object],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm,
    budget: int,
) -> Tensor:
    """The distance (N,) of the nearest example that an attack evaluates within the budget, image by image; float64.

    attack: called as attack(model, image, label) with one image (1, C, H, W) and its label (1,); its return value is
    ignored. budget: forward and backward evaluations per image, together. Infinite where no example was found, 0 where
    the image itself is misclassified.
    """
    if budget < 1:
        raise InputError(f"the budget must be at least one evaluation, got {budget}")
    found = []
    for image, label in zip(torch.split(x, 1), torch.split(y, 1), strict=True):
        with torch.no_grad():
            wrong = int(model(image).argmax(dim=1)) != int(label)
        metered = Metered(model, image, int(label), norm, budget).train(model.training)
        try:
            if not wrong:
                attack(metered, image, label)
        except BudgetSpentError:
            pass
        found.append(0.0 if wrong else metered.nearest)
    return torch.tensor(found, dtype=torch.float64)


def local_optimality(distances: Mapping[str, Tensor]) -> dict[str, float]:
    """Local optimality of every attack, from its distances (N,) on the same samples of one network; 1 is best.

    >>> local_optimality({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0, torch.inf])})
    {'a': 1.0, 'b': 1.0}
    >>> local_optimality({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.5, 2.0])})
    {'a': 1.0, 'b': 0.5}
    """
    if len({len(values) for values in distances.values()}) != 1:
        raise InputError("the attacks must have been run on the same samples; give equally many distances for each")
    values = torch.stack([one.to(torch.float64) for one in distances.values()])
    best = values.amin(dim=0)
    counted = torch.isfinite(best) & (best > 0)
    last = best[counted].amax() if bool(counted.any()) else torch.zeros(())
    values, best = values[:, counted].clamp(max=last), best[counted]
    whole = (last - best).sum()
    if not bool(whole > 0):
        raise InputError(
            "the nearest examples of all samples are equally far, so the curves cannot be compared; use more samples"
        )
    shares = 1 - (values - best).sum(dim=1) / whole
    return dict(zip(distances, shares.tolist(), strict=True))


def optimality(networks: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Mean local optimality of every attack over networks, each a mapping from the attack's name to its distances."""
    if not networks or any(set(one) != set(networks[0]) for one in networks):
        raise InputError("give at least one network; every network must have been attacked by the same attacks")
    local = [local_optimality(distances) for distances in networks]
    return {name: sum(shares[name] for shares in local) / len(local) for name in networks[0]}
