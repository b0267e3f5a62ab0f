"""A network built from a list of ATen operations, as stored in files of traced and exported networks.

Only operations that compute with tensors are accepted: regardless of the contents of a file, nothing else is called.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from robustres.errors import ModelError
from robustres.models.sources.allowed_operations import is_allowed

# Largest size in bytes of one value inside a network, for a few images.
LARGEST_VALUE = 2**30
NAME = re.compile(r"[A-Za-z_]\w*")
# Operations allowed on the sizes of tensors, besides choosing one of several results.
ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem")
}
# Position of the training flag among the arguments of an operation.
TRAINING = {"batch_norm": 5, "instance_norm": 5, "dropout": 2, "feature_dropout": 2, "alpha_dropout": 2}


def aten_operation(name: str, overload: str) -> Callable[..., Any]:
    """The operation torch.ops.aten.NAME.OVERLOAD; raises ModelError if a file may not use it."""
    if NAME.fullmatch(name) and NAME.fullmatch(overload) and is_allowed(name, overload):
        packet = getattr(torch.ops.aten, name, None)
        found = getattr(packet, overload, None)
        if isinstance(found, torch._ops.OpOverload):
            return found
    raise ModelError(
        f"it uses aten.{name}.{overload}, which is not among the operations of image classifiers that a file may use; "
        "build the network in your own function and pass package.module:function"
    )


class AtenGraph:
    """Collects tensors and calls in order; `finish` builds the module."""

    def __init__(self) -> None:
        self._root = nn.Module()
        self._graph = fx.Graph()

    def input(self, name: str) -> fx.Node:
        """The images."""
        return self._graph.placeholder(name if NAME.fullmatch(name) else "images")

    def tensor(self, name: str, value: Tensor, *, trainable: bool) -> fx.Node:
        """A weight or a constant under a dotted name."""
        path, _, last = name.rpartition(".")
        owner = self._root
        for part in path.split(".") if path else ():
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if trainable and value.is_floating_point():
            owner.register_parameter(last, nn.Parameter(value))
        else:
            owner.register_buffer(last, value)
        return self._graph.get_attr(name)

    def call(
        self, operation: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
    ) -> fx.Node:
        """Add one operation; raises ModelError if it is in training mode."""
        name = getattr(getattr(operation, "overloadpacket", None), "__name__", "")
        position = TRAINING.get(name)
        if position is not None and len(args) > position and args[position] is True:
            raise ModelError(f"its {name} is in training mode; call model.eval() before you export it")
        return self._graph.call_function(operation, tuple(args), dict(kwargs or {}))

    def finish(self, output: fx.Node) -> nn.Module:
        """The module, in evaluation mode."""
        self._graph.output(output)
        self._graph.lint()
        return fx.GraphModule(self._root, self._graph).eval()


def require_moderate(module: nn.Module, images: Tensor) -> None:
    """Raise ModelError if any value that the network computes from such images would be huge; nothing is computed.

    The shapes are propagated by torch's fake tensors, which take no memory.
    """
    assert isinstance(module, fx.GraphModule)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        _Sizes(module).run(fake.from_tensor(images))


class _Sizes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, Tensor) and part.numel() * part.itemsize > LARGEST_VALUE:
                size = part.numel() * part.itemsize
                raise ModelError(f"its {n.name} would make {size} bytes from a few images, as no classifier does")
        return value
