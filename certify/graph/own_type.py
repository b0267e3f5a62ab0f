"""The float64 copy of a narrower model, run as that model is written: `x.float()` and `dtype=torch.float32` mean no
rounding in a model of float32, and constants that its code makes meet the wider values."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from robustres.precision import floating_types

TYPE_OF = Tensor.dtype.__get__  # type: ignore[attr-defined]
RMS_NORM = ("input", "normalized_shape", "weight", "eps")  # its default eps is that of the type of its input
NAMED = {Tensor.float: torch.float32, Tensor.half: torch.float16, Tensor.bfloat16: torch.bfloat16}
# Legacy names of tensors of one type, as `Tensor.type` takes them.
LEGACY = {"torch.FloatTensor": "torch.DoubleTensor", torch.FloatTensor: "torch.DoubleTensor"}


class OwnType(TorchFunctionMode):
    """While it is active, float64 stands for the type `own` and for wider ones, and `x.dtype` tells `own`.

    Casts to narrower types than its own round, and remain.
    """

    def __init__(self, own: torch.dtype) -> None:
        super().__init__()
        self.own = own
        self._wide = {own: torch.float64, torch.float32: torch.float64, torch.complex64: torch.complex128}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == TYPE_OF:
            return self.own if (dtype := func(*args)) == torch.float64 else dtype
        if "out" in kwargs:
            return func(*args, **kwargs)
        if _changes_first(func):
            return func(args[0], *tree_map(self._argument, args[1:]), **tree_map(self._argument, kwargs))
        if NAMED.get(func) in self._wide:
            func = Tensor.double
        if func in (F.rms_norm, torch.rms_norm):
            args, kwargs = (), dict(zip(RMS_NORM, args, strict=False), **kwargs)
            if kwargs.get("eps") is None:
                kwargs["eps"] = torch.finfo(self.own).eps
        args, kwargs = tree_map(self._argument, (args, kwargs))
        return tree_map(self._tensor, func(*args, **kwargs))

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.dtype):
            return self._wide.get(leaf, leaf)
        if isinstance(leaf, str | type):
            return LEGACY.get(leaf, leaf)
        return self._tensor(leaf)

    def _tensor(self, leaf: Any) -> Any:
        return leaf.to(self._wide[leaf.dtype]) if isinstance(leaf, Tensor) and leaf.dtype in self._wide else leaf


def _changes_first(func: Any) -> bool:
    """Whether the function writes into its first argument, which a cast would take out of reach."""
    name = str(getattr(func, "__name__", ""))
    return name in ("__setitem__", "__set__") or (name.endswith("_") and not name.endswith("__"))


def as_written(model: Callable[..., Tensor], own: torch.dtype) -> Callable[..., Tensor]:
    """A model that was cast to float64, or a method of it, run as it is written for the type `own`."""
    if own == torch.float64:
        return model

    def run(*args: Any) -> Tensor:
        with OwnType(own):
            return model(*args)

    return run


def own_type(model: nn.Module) -> torch.dtype:
    """The widest floating-point type of the parameters and buffers; float64 if there are none, so that nothing is cast.

    >>> own_type(nn.Linear(2, 2))
    torch.float32
    """
    return min(floating_types(model), key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)
