"""The bound of the whole network in training: against that of the certifier, its derivative, and training."""

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import certify, lipschitz
from robustres.data import ImageSet, load_data
from robustres.errors import InputError
from robustres.training import Recipe, train
from robustres.training.whole_norm import WholeNorm


class Mixed(nn.Module):
    """Normalisation of the input, a strided convolution, batch normalisation, a residual branch, two activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)
        self.branch, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(64, 10)
        self.norm.running_var.mul_(2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first((x - 0.5) / 0.3)))
        x = x + nn.functional.leaky_relu(self.branch(x), 0.1)
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def reachable(model: nn.Module) -> float:
    found = lipschitz(model, (1, 8, 8), lower_steps=0).whole
    assert found is not None
    return found.reachable


def test_it_and_its_derivative_are_those_reachable_by_the_certifiers_multipliers() -> None:
    model = Mixed().eval()
    norm = WholeNorm(model, (1, 8, 8))
    settled = float(norm.settle(150))
    report = lipschitz(model, (1, 8, 8), lower_steps=0)
    assert report.whole is not None
    assert settled == pytest.approx(report.whole.reachable, rel=2e-4)
    assert settled <= report.upper * (1 + 1e-4)
    norm.train()().backward()
    weight = model.branch.weight
    assert weight.grad is not None
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        weight.add_(1e-3 * direction)
        above = reachable(model)
        weight.sub_(2e-3 * direction)
        below = reachable(model)
    assert float((weight.grad * direction).sum()) == pytest.approx((above - below) / 2e-3, rel=0.03)


def test_it_uses_the_current_weights_and_statistics_of_the_model() -> None:
    model = Mixed().eval()
    norm = WholeNorm(model, (1, 8, 8)).eval()
    before = float(norm())
    with torch.no_grad():
        model.head.weight.mul_(2)
        model.norm.running_var.mul_(4)  # type: ignore[union-attr]
    assert float(norm.train().eval()()) != before
    assert float(norm.settle(150)) == pytest.approx(reachable(model), rel=1e-3)


def test_an_operation_that_is_not_an_activation_is_refused_by_name() -> None:
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(3, stride=2), nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(InputError, match=r"not the operation aten.max_pool2d.* at 1; .* bound = 'blocks'"):
        WholeNorm(pooled, (1, 8, 8))
    with pytest.raises(InputError, match="bound must be one of blocks, whole"):
        Recipe(bound="all")  # type: ignore[arg-type]


def test_a_user_defined_network_can_be_certified_after_training_with_it() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.inner, self.outer = nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 48)
            self.head = nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x.flatten(1)).relu()
            return self.head(x + self.outer(self.inner(x).relu()))  # type: ignore[no-any-return]

    model = Own()
    parts: list[ImageSet] = [load_data("digits", split=split) for split in ("train", "validation")]
    train(model, *parts, Recipe(loss="emma", bound="whole", eps=0.3, epochs=8, learning_rate=1e-2))
    found = certify(model, parts[1].images)
    right = (found.prediction == parts[1].labels) & (found.radius >= 0.3)
    assert right.double().mean() > 0.5
