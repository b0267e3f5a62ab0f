"""Claims about the Lipschitz constants of a model, with the modules and inputs on which they are tested."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustres.certify.graph.statements import HasLipschitzBound
from robustres.certify.graph.tracing import first_line, outermost_stated
from robustres.certify.maps.linear_map import Shape
from robustres.errors import InputError, ModelError
from robustres.precision import taking


@dataclass(frozen=True, eq=False)
class Claim:
    """The claim that the l2 Lipschitz constant of `module` is at most `value`; `starts` (N, ...) are inputs of it."""

    name: str
    value: float
    module: nn.Module
    starts: Tensor


def without_statements(module: nn.Module) -> nn.Module:
    """The module with the statements of its parts about their own bounds hidden, so that the parts are analysed.

    Each such part becomes an instance of a subclass in which the method is None, so that it does not match the
    protocol.
    """
    for part in module.modules():
        if isinstance(part, HasLipschitzBound):
            kind = type(part)
            part.__class__ = type(kind.__name__, (kind,), {"lipschitz_bound": None, "__module__": kind.__module__})
    return module


def claims_of(
    model: nn.Module, module: nn.Module, images: Tensor, claimed: float | Mapping[str, float] | None
) -> list[Claim]:
    """The claims, in the order of the table, each with the part of `module` and the inputs that it concerns.

    model: as given by the caller; its statements are used if `claimed` is None. module: its copy without
    statements, whose parts are audited. A layer with inputs of several shapes gives one claim per shape.
    """
    if claimed is None:
        names = list(outermost_stated(model))
        if not names:
            raise InputError(
                "nothing is claimed: pass claimed, or give a module a method lipschitz_bound that states its bound"
            )
        met = _inputs_of(module, images, names)
        return [
            Claim(name, _stated(model, name, tuple(starts.shape[1:])), module.get_submodule(name), starts)
            for name in names
            for starts in met[name]
        ]
    table = claimed if isinstance(claimed, Mapping) else {"": claimed}
    _check(table, module)
    met = _inputs_of(module, images, list(table))
    return [
        Claim(name, float(value), module.get_submodule(name), starts)
        for name, value in table.items()
        for starts in met[name]
    ]


def _check(table: Mapping[str, float], module: nn.Module) -> None:
    if not table:
        raise InputError("nothing is claimed: the table is empty; name at least one layer with its claimed constant")
    known = dict(module.named_modules(remove_duplicate=False))
    for name, value in table.items():
        if name not in known:
            listed = ", ".join(repr(other) for other in list(known)[:20])
            raise InputError(f"the model has no layer called {name!r}; its layers are {listed}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
            raise InputError(f"a claimed constant must be a finite number of at least 0, got {value!r} for {name!r}")


def _stated(model: nn.Module, name: str, shape: Shape) -> float:
    part = model.get_submodule(name)
    assert isinstance(part, HasLipschitzBound), name
    return float(part.lipschitz_bound(shape).upper)


def _inputs_of(module: nn.Module, images: Tensor, names: list[str]) -> dict[str, list[Tensor]]:
    """For every name, the inputs of that part when the module is run on the images, one batch per shape."""
    met: dict[str, dict[Shape, Tensor]] = {name: {} for name in names}
    with ExitStack() as hooks, torch.no_grad():
        for name in names:
            hook = module.get_submodule(name).register_forward_pre_hook(_recorder(name, met[name]), with_kwargs=True)
            hooks.callback(hook.remove)
        try:
            taking(module, images)(images.clone())
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shape = tuple(images.shape)
            raise ModelError(f"the model does not run on inputs of shape {shape}: {first_line(error)}") from error
    for name, inputs in met.items():
        if not inputs:
            raise InputError(f"the layer {name!r} is never called by the model, so a claim about it means nothing")
    return {name: list(inputs.values()) for name, inputs in met.items()}


def _recorder(name: str, inputs: dict[Shape, Tensor]) -> Any:
    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [*_tensors(args), *_tensors(tuple(kwargs.values()))]
        if len(tensors) != 1 or tensors[0].ndim < 2 or not tensors[0].is_floating_point():
            raise InputError(
                f"the layer {name!r} takes {len(tensors)} tensors; a claim must be about a layer that takes one batch"
            )
        inputs.setdefault(tuple(tensors[0].shape[1:]), tensors[0].detach().to(torch.float64))

    return record


def _tensors(values: tuple[Any, ...]) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor))
