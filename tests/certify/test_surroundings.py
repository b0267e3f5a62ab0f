"""A report is refused for a model whose code reads other values than before, also where no image shows it."""

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustres.certify import Bound, certify, lipschitz
from robustres.certify.bounds.surroundings import Surroundings
from robustres.errors import InputError

STEEP = 1.0


def multiplied(x: Tensor, steep: float) -> Tensor:
    return x * steep


class Settings:
    steep = 1.0


class Numbers(list[float]):
    steep = 1.0


class Stated(nn.Module):
    steep = 1.0

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> Bound:
        return Bound(0.0, self.steep, "stated")

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 1e6, (x - 1e6) * self.steep + 1e6, x)


class Far(nn.Module):
    """A layer and something that is 0 for all ordinary inputs."""

    def __init__(self, beyond: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.stated = nn.Linear(4, 3), Stated()
        cell = [1.0]
        self.closure = lambda x: x * cell[0]
        self.change = lambda value: cell.__setitem__(0, value)
        self.default = types.FunctionType(multiplied.__code__, globals(), "default", (1.0,))
        self.partial = functools.partial(multiplied, steep=1.0)
        self.numbers, self.place = Numbers([1.0]), types.SimpleNamespace(training=1.0)
        self.beyond = beyond

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return self.stated(h) + self.beyond(self, torch.relu(h - 1e6))


def set_global(value: float) -> None:
    globals()["STEEP"] = value


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[Any, float], Any]]] = {
    "global": (lambda m, h: h * STEEP, lambda m, value: set_global(value)),
    "class": (lambda m, h: h * Settings.steep, lambda m, value: setattr(Settings, "steep", value)),
    "closure": (lambda m, h: m.closure(h), lambda m, value: m.change(value)),
    "default": (lambda m, h: m.default(h), lambda m, value: setattr(m.default, "__defaults__", (value,))),
    "partial": (
        lambda m, h: m.partial(h),
        lambda m, value: setattr(m, "partial", functools.partial(multiplied, steep=value)),
    ),
    "list": (lambda m, h: h * m.numbers.steep, lambda m, value: setattr(m.numbers, "steep", value)),
    "name of a mode": (lambda m, h: h * m.place.training, lambda m, value: setattr(m.place, "training", value)),
    "module's class": (lambda m, h: h * m.stated.steep, lambda m, value: setattr(Stated, "steep", value)),
    "module that states its bound": (lambda m, h: h, lambda m, value: setattr(m.stated, "steep", value)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_change_around_a_model_is_detected(name: str) -> None:
    beyond, change = CASES[name]
    model, x = Far(beyond), torch.rand(3, 4)
    report = lipschitz(model, (4,), lower_steps=0)
    certify(model, x, report=report)
    certify(copy.deepcopy(model).double(), x, report=report)
    change(model, 50.0)
    try:
        with pytest.raises(InputError, match="another model"):
            certify(model, x, report=report)
    finally:
        change(model, 1.0)


def test_a_copy_has_the_same_surroundings() -> None:
    model = Far(CASES["global"][0])
    assert Surroundings(model).same_for(copy.deepcopy(model).double())
    assert not Surroundings(model).same_for(Far(CASES["class"][0]))
