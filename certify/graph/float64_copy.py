"""Copies of models in float64 and evaluation mode, which are what is certified."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from robustres.certify.graph.tracing import first_line
from robustres.errors import ModelError, Refusal, UnsupportedOperationError
from robustres.guard import without_guards


def float64_copy(model: nn.Module) -> nn.Module:
    """A copy of the model in float64 and evaluation mode, without gradients; the model itself is not touched."""
    return evaluation_copy(model, _exactly)


def evaluation_copy(model: nn.Module, cast: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """A copy of the model in evaluation mode, without gradients and with all weights as plain parameters.

    cast: applied to all its parameters and buffers.
    """
    scripted = [path for path, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripted:
        what = "TorchScript that is not a plain graph, which certification cannot analyse (pass its nn.Module)"
        raise UnsupportedOperationError([Refusal(path, what) for path in scripted[:1]])
    derived = [value for part in model.modules() for value in tree_leaves(_plain_attributes(part)) if _derived(value)]
    try:
        module = copy.deepcopy(model, {id(value): value.detach().clone() for value in derived})
        module = without_guards(module).eval()
        if cast is not None:
            module._apply(cast)  # type: ignore[no-untyped-call]
        _without_hooks_that_derive(module)
    except Exception as error:
        raise ModelError(
            f"the model cannot be copied to float64, which certification needs: {first_line(error)}"
        ) from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def _exactly(value: Tensor) -> Tensor:
    """The same real or complex numbers in float64; others unchanged."""
    wide = torch.complex128 if value.is_complex() else torch.float64
    return value.to(wide) if value.is_floating_point() or value.is_complex() else value


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of the module other than its parameters, buffers and submodules."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def _derived(value: Any) -> bool:
    """Whether this is a tensor computed from parameters, which `copy.deepcopy` refuses."""
    return isinstance(value, Tensor) and value.grad_fn is not None


def _without_hooks_that_derive(module: nn.Module) -> None:
    """Replace weights that hooks derive before every call by plain weights (weight and spectral norm, pruning)."""
    for part in module.modules():
        for key, hook in list(part._forward_pre_hooks.items()):
            if isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod):
                hook.remove(part)
                part._forward_pre_hooks.pop(key, None)
