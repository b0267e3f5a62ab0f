"""Values during conversion: tensors that depend on the images, known tensors, and integers that depend on the batch
size.

The shape of every tensor is computed for several batch sizes at once, on torch's `meta` device, where tensors have
shapes but no data. Operations on a batch size (Shape, Gather, Concat, Reshape) are thus computed with plain numbers and
interpreted at the end: a size that is 3 for every batch size is 3; a size of 4, 6 and 10 for 2, 3 and 5 images is twice
the batch.
"""

import keyword
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from robustres.errors import ModelError
from robustres.models.sources.onnx.composites import find_activations

# Largest number of elements of one tensor of one image: 128 MiB in float32.
LARGEST_TENSOR = 2**25
# Largest total size, in bytes, of the tensors of one image that are alive at once.
LARGEST_ALIVE = 2**29
# Largest number of multiplications for one image; the largest vision transformers in use take 2e11.
MOST_WORK = 5e11


@dataclass(frozen=True)
class Dim:
    """An integer that depends on the number of images: its value for each of the recorder's batch sizes."""

    values: tuple[int, ...]


Side = int | Dim


@dataclass(frozen=True, eq=False)
class Known:
    """A tensor that does not depend on the images, once per batch size; the same object if it does not depend on it."""

    values: tuple[Tensor, ...]

    @property
    def constant(self) -> bool:
        """Whether it is also independent of the batch size."""
        return all(value is self.values[0] for value in self.values)


class Traced:
    """A tensor that depends on the images; torch functions applied to it are recorded."""

    def __init__(self, recorder: "Recorder", node: fx.Node, shapes: tuple[Tensor, ...]) -> None:
        self.recorder, self.node, self.shapes = recorder, node, shapes

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.shapes[0].ndim

    @property
    def dtype(self) -> torch.dtype:
        """Data type of its elements."""
        return self.shapes[0].dtype

    @property
    def shape(self) -> tuple[Side, ...]:
        """Its shape."""
        return tuple(side_of(values) for values in zip(*(tuple(shape.shape) for shape in self.shapes), strict=True))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Record a call of a torch function."""
        traced = next(value for value in flat((args, kwargs or {})) if isinstance(value, Traced))
        return traced.recorder.call(func, args, kwargs or {})


def side_of(values: Iterable[int]) -> Side:
    """One number if it is the same for every batch size, else a Dim."""
    numbers = tuple(int(value) for value in values)
    return numbers[0] if len(set(numbers)) == 1 else Dim(numbers)


def device_of(x: Any) -> str:
    """The device for operands of a tensor: its own, or the CPU for constants of a recorded network."""
    return "meta" if isinstance(x, Tensor) and x.is_meta else "cpu"


def flat(value: Any) -> Iterable[Any]:
    """The leaves of nested arguments."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from flat(item)
    elif isinstance(value, Mapping):
        yield from flat(tuple(value.values()))
    elif isinstance(value, slice):
        yield from flat((value.start, value.stop, value.step))
    else:
        yield value


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Nested arguments with every leaf replaced."""
    if isinstance(value, list | tuple):
        return type(value)(mapped(function, item) for item in value)
    if isinstance(value, Mapping):
        return {key: mapped(function, item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(mapped(function, part) for part in (value.start, value.stop, value.step)))
    return function(value)


def apply(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Apply a function to tensors or traced ones; arguments may be sizes, which torch functions do not accept."""
    for value in flat((args, kwargs)):
        if isinstance(value, Traced):
            return value.recorder.call(function, args, kwargs)
    return function(*args, **kwargs)


def require_size(tensor: Tensor, images: int) -> None:
    """Raise ModelError for a tensor that is larger than any network needs for this number of images."""
    if tensor.numel() > LARGEST_TENSOR * images:
        raise ModelError(
            f"creates a tensor of shape {tuple(tensor.shape)}; at most {LARGEST_TENSOR} elements are allowed"
        )


class Bounded(TorchFunctionMode):
    """Refuse results that are larger than any network needs; for tensors on `meta`, where nothing is allocated."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the result if it is small enough."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            require_size(result, 1)
        return result


class Recorder:
    """The network under construction.

    batches: the batch sizes for which shapes are computed. rewritten: whether an operator replaced a constant batch
    size in the file by that of the images.
    """

    def __init__(self, batches: tuple[int, ...]) -> None:
        self.batches = batches
        self.work = 0.0
        self.rewritten = False
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._names: dict[int, tuple[str, bool, Tensor]] = {}
        self._lifted: dict[int, fx.Node] = {}
        self._sizes: dict[fx.Node, int] = {}
        self._images: fx.Node | None = None
        self._dims: dict[tuple[int, ...], fx.Node | int] = {}

    def images(self, sides: Sequence[int], dtype: torch.dtype) -> Traced:
        """The input: images of these sizes."""
        self._images = self._graph.placeholder("images")
        shapes = tuple(torch.empty(batch, *sides, dtype=dtype, device="meta") for batch in self.batches)
        return Traced(self, self._images, shapes)

    def named(self, name: str, tensor: Tensor, *, trainable: bool) -> Tensor:
        """Register the name under which a tensor is stored if the network needs it."""
        self._names[id(tensor)] = (name, trainable, tensor)
        return tensor

    def lift(self, tensor: Tensor) -> Traced:
        """A constant as a tensor of the network."""
        if id(tensor) not in self._lifted:
            name, trainable, _ = self._names.get(id(tensor), ("constant", False, tensor))
            self._names[id(tensor)] = (name, trainable, tensor)  # keeps the tensor alive, so that its id stays unique
            owner, path, last = self._place(name)
            if trainable and tensor.is_floating_point():
                owner.register_parameter(last, nn.Parameter(tensor))
            else:
                owner.register_buffer(last, tensor)
            self._lifted[id(tensor)] = self._graph.get_attr(path)
        shape = tensor.to("meta")
        return Traced(self, self._lifted[id(tensor)], (shape,) * len(self.batches))

    def call(self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Record a call whose arguments may be traced tensors, constants and sizes."""
        args, kwargs = mapped(self._liftable, (tuple(args), dict(kwargs)))
        results = [function(*self.at(k, args), **self.at(k, kwargs)) for k in self._places()]
        self._count(function, args, kwargs, results)
        node = self._graph.call_function(function, self._nodes(args), self._nodes(kwargs))
        return self._result(node, results)

    def module(self, module: nn.Module, name: str, *inputs: Traced) -> Any:
        """Record a call of a layer, stored under a dotted name or the nearest free one."""
        owner, path, last = self._place(name)
        owner.add_module(last, module)
        meta = {key: value.to("meta") for key, value in (*module.named_parameters(), *module.named_buffers())}
        results = [torch.func.functional_call(module, meta, self.at(k, inputs)) for k in self._places()]
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim > 1:
            self.work += results[-1].numel() / self.batches[-1] * weight[0].numel()
        node = self._graph.call_module(path, self._nodes(inputs))
        return self._result(node, results)

    def at(self, place: int, value: Any) -> Any:
        """Arguments for one of the batch sizes, on `meta`."""

        def one(leaf: Any) -> Any:
            if isinstance(leaf, Traced):
                return leaf.shapes[place]
            return leaf.values[place] if isinstance(leaf, Dim) else leaf

        return mapped(one, value)

    def finish(self, output: Traced) -> fx.GraphModule:
        """The network, in evaluation mode."""
        self._graph.output(output.node)
        self._graph.lint()
        self._require_small()
        network = fx.GraphModule(self._root, self._graph)
        find_activations(network.graph, network)
        return fx.GraphModule(network, network.graph).eval()  # drops unused constants

    def _count(self, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], results: list[Any]) -> None:
        """Add the multiplications of products, convolutions and pooling windows."""
        each = 1.0
        if "kernel_size" in kwargs:
            each = math.prod(kwargs["kernel_size"])
        elif function is torch.matmul:
            each = args[0].shapes[-1].shape[-1]
        elif len(args) > 1 and "conv" in getattr(function, "__name__", ""):
            each = args[1].shapes[-1][0].numel()
        if isinstance(results[-1], Tensor):
            self.work += results[-1].numel() / self.batches[-1] * each

    def _places(self) -> range:
        return range(len(self.batches))

    def _liftable(self, leaf: Any) -> Any:
        return self.lift(leaf) if isinstance(leaf, Tensor) else leaf

    def _result(self, node: fx.Node, results: list[Any]) -> Any:
        if isinstance(results[0], tuple | list):
            parts = zip(*results, strict=True)
            return tuple(
                self._result(self._graph.call_function(operator.getitem, (node, place)), list(part))
                for place, part in enumerate(parts)
            )
        for batch, result in zip(self.batches, results, strict=True):
            require_size(result, batch)
        self._sizes[node] = max(
            math.ceil(result.numel() * result.element_size() / batch)
            for batch, result in zip(self.batches, results, strict=True)
        )
        return Traced(self, node, tuple(results))

    def _nodes(self, value: Any) -> Any:
        """Arguments as the graph holds them."""

        def one(leaf: Any) -> Any:
            if isinstance(leaf, Traced):
                return leaf.node
            return self._dim(leaf) if isinstance(leaf, Dim) else leaf

        return mapped(one, value)

    def _dim(self, dim: Dim) -> fx.Node:
        """A size of the form factor * batch + offset, computed in the graph from the images."""
        first, second = self.batches[:2]
        factor, rest = divmod(dim.values[1] - dim.values[0], second - first)
        offset = dim.values[0] - factor * first
        if rest or any(factor * b + offset != v for b, v in zip(self.batches, dim.values, strict=True)):
            raise ModelError(
                f"has a size of {dim.values} for {self.batches} images, which is not linear in the batch size"
            )
        batch = self._known_dim((1, 0), lambda: self._graph.call_method("size", (self._images, 0)))
        scaled = batch if factor == 1 else self._known_dim(
            (factor, 0), lambda: self._graph.call_function(operator.mul, (batch, factor))
        )  # fmt: skip
        if offset == 0:
            return scaled
        return self._known_dim((factor, offset), lambda: self._graph.call_function(operator.add, (scaled, offset)))

    def _known_dim(self, key: tuple[int, int], make: Callable[[], fx.Node]) -> fx.Node:
        """Compute a node once."""
        if key not in self._dims:
            self._dims[key] = make()
        node = self._dims[key]
        assert isinstance(node, fx.Node)
        return node

    def _place(self, name: str) -> tuple[nn.Module, str, str]:
        """Position for this dotted name: the module that contains it, its path, and the last part."""
        words = [re.sub(r"\W", "_", word, flags=re.ASCII)[:100] or "_" for word in name.split(".")][:16]
        words = [f"{word}_" if keyword.iskeyword(word) else word for word in words]
        owner, path = self._root, ""
        for word in words[:-1]:
            word = self._free(owner, word, container=True)
            if word not in owner._modules:
                owner.add_module(word, nn.Module())
            owner = owner.get_submodule(word)
            path = f"{path}{word}."
        last = self._free(owner, words[-1])
        return owner, path + last, last

    @staticmethod
    def _free(owner: nn.Module, word: str, *, container: bool = False) -> str:
        """The word, or the word with a number, that is not yet used in the module (except by a container)."""
        candidate, number = word, 1
        while hasattr(owner, candidate) and not (container and type(owner._modules.get(candidate)) is nn.Module):
            number += 1
            candidate = f"{word}_{number}"
        return candidate

    def _require_small(self) -> None:
        """Raise ModelError if the network would need more memory or time for one image than the limits allow."""
        last: dict[fx.Node, fx.Node] = {}
        for node in self._graph.nodes:
            for parent in node.all_input_nodes:
                last[parent] = node
        ending: dict[fx.Node, int] = {}
        for parent, node in last.items():
            ending[node] = ending.get(node, 0) + self._sizes.get(parent, 0)
        alive = highest = 0
        for node in self._graph.nodes:
            alive += self._sizes.get(node, 0)
            highest = max(highest, alive)
            alive -= ending.get(node, 0)
        if highest > LARGEST_ALIVE or self.work > MOST_WORK:
            raise ModelError(
                f"it would need {highest / 2**20:.0f} MiB and {self.work:.2g} multiplications for one image; "
                f"{LARGEST_ALIVE / 2**20:.0f} MiB and {MOST_WORK:.2g} are allowed"
            )
