"""Converts a network in training to plain weights: every parametrisation is settled on a bound, evaluated and
removed.
"""

import copy
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from robustres.guard import without_guards


@runtime_checkable
class SettlesOn(Protocol):
    """A parametrisation that can replace its estimate by a bound, given the unconstrained weight."""

    def settle(self, weight: Tensor) -> None:
        """Rely on a bound from now on."""
        ...


@runtime_checkable
class SettlesItself(Protocol):
    """A block that divides by its own bound, which is estimated during training."""

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
                    if not hasattr(entry, "original"):  # of several tensors, as weight normalisation has it
                        continue
                    weight = entry.original
                    for step in entry:
                        if isinstance(step, SettlesOn):
                            step.settle(weight)
                        weight = step(weight)


def materialise(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights are plain tensors, for saving, certifying and deploying.

    Parametrised weights are evaluated in float64 after `settle`; every tensor keeps its type, also in a network with
    several types. The given model is left unchanged.
    """
    plain = without_guards(with_plain_weights(copy.deepcopy(model, _derived(model)))).eval()
    if not any(isinstance(part, SettlesItself) or parametrize.is_parametrized(part) for part in plain.modules()):
        return plain
    with torch.no_grad():
        types = {name: tensor.dtype for name, tensor in _named_tensors(without_parametrisations(copy.deepcopy(plain)))}
    plain.to(torch.float64)
    settle(plain)
    for name, tensor in _named_tensors(without_parametrisations(plain)):
        tensor.data = tensor.data.to(types[name])
    return plain


def _derived(model: nn.Module) -> dict[int, Any]:
    """For a copy: weights computed by hooks from others, detached from their history, which cannot be copied."""
    attributes = (value for part in model.modules() for value in part.__dict__.values())
    return {
        id(value): value.detach().clone()
        for value in attributes
        if isinstance(value, Tensor) and value.grad_fn is not None
    }


def with_plain_weights(model: nn.Module) -> nn.Module:
    """The given model, with weights derived by hooks (weight_norm, spectral_norm, pruning) as plain parameters."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if not isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod):
                continue
            name = str(getattr(hook, "name", getattr(hook, "_tensor_name", "weight")))
            with torch.no_grad():
                if isinstance(hook, SpectralNorm):
                    value = hook.compute_weight(module, do_power_iteration=False)
                elif isinstance(hook, WeightNorm):
                    value = hook.compute_weight(module)
                else:
                    value = hook.apply_mask(module)  # type: ignore[no-untyped-call]
                value = value.detach().clone()
            del module._forward_pre_hooks[key]
            _forget_storage(module, hook)
            for suffix in ("_g", "_v", "_orig", "_mask", "_u"):
                for store in (module._parameters, module._buffers):
                    if suffix != "_v" or isinstance(hook, WeightNorm) or store is module._buffers:
                        store.pop(name + suffix, None)
            module.__dict__.pop(name, None)
            module._buffers.pop(name, None)
            module.register_parameter(name, nn.Parameter(value))
    return model


def _forget_storage(module: nn.Module, owner: Any) -> None:
    """Remove the hooks that translate the tensors of a state_dict for a module that derives weights from them."""
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if getattr(getattr(hook, "hook", hook), "fn", None) is owner:
                del hooks[key]


def plain_names(model: nn.Module) -> list[str]:
    """The names of the model's weights once none of them is derived from others; the model is left unchanged."""
    return list(plainly(copy.deepcopy(model, _derived(model))).state_dict())


def plainly(model: nn.Module) -> nn.Module:
    """The given model, with every weight derived by hooks or parametrisations replaced by its current value."""
    return without_parametrisations(with_plain_weights(model))


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def without_parametrisations(model: nn.Module) -> nn.Module:
    """The given model, with every parametrised tensor replaced by its current value as a plain parameter.

    `parametrize.remove_parametrizations` is not used: it deletes the property from a class that a deep copy shares with
    its original, and so breaks the other one.
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
