"""From a network in training to plain weights: every parametrisation settled on a bound, evaluated and removed."""

import copy
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustres.guard import without_guards


@runtime_checkable
class SettlesOn(Protocol):
    """A parametrisation that can replace its estimate by a bound, given the unconstrained weight."""

    def settle(self, weight: Tensor) -> None:
        """Rely on a bound from now on."""
        ...


@runtime_checkable
class SettlesItself(Protocol):
    """A block that divides by a bound of its own, estimated while training."""

    def settle_scale(self) -> None:
        """Rely on a bound from now on."""
        ...


def settle(model: nn.Module) -> None:
    """Replace, in place, every norm that training estimated by a bound, so that the stated constraints hold."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SettlesItself):
                module.settle_scale()
            if parametrize.is_parametrized(module):
                for entry in module.parametrizations.values():  # type: ignore[operator]
                    weight = entry.original
                    for step in entry:
                        if isinstance(step, SettlesOn):
                            step.settle(weight)
                        weight = step(weight)


def materialise(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights are plain tensors: what is saved, certified and shipped.

    Parametrised weights are evaluated in float64 after `settle`; every tensor has the type that it had before, so that
    a network of several types stays one. The model given is left as it was.
    """
    plain = without_guards(copy.deepcopy(model)).eval()
    if not any(isinstance(part, SettlesItself) or parametrize.is_parametrized(part) for part in plain.modules()):
        return plain
    with torch.no_grad():
        types = {name: tensor.dtype for name, tensor in _named_tensors(without_parametrisations(copy.deepcopy(plain)))}
    plain.to(torch.float64)
    settle(plain)
    for name, tensor in _named_tensors(without_parametrisations(plain)):
        tensor.data = tensor.data.to(types[name])
    return plain


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def without_parametrisations(model: nn.Module) -> nn.Module:
    """The model given, every parametrised tensor replaced by its present value as a plain parameter.

    Not `parametrize.remove_parametrizations`: it deletes the property from a class that a deep copy shares with its
    original, and so breaks the other of the two.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            names = list(module.parametrizations)  # type: ignore[arg-type]
            values = {name: getattr(module, name).detach().clone() for name in names}
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))
    return model
