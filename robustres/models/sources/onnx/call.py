"""One node of an ONNX graph in the form passed to an operator: attributes, inputs, and whether the inputs are known."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustres.errors import ModelError
from robustres.models.sources.onnx.traced import Dim, Known, Recorder, Side, Traced, side_of

Input = Known | Traced | None


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of an operator.

    version: the operator set that defined the applicable version of the operator. outputs: which outputs of the node
    are used. place: if every input is known, the index of the batch size for which the result is computed; None if the
    operator is to be recorded. shapes_only: return known tensors without their values.
    """

    operator: str
    version: int
    name: str
    attributes: Mapping[str, Any]
    inputs: Sequence[Input]
    outputs: tuple[bool, ...]
    recorder: Recorder
    fixed_batch: int | None = None
    place: int | None = None
    shapes_only: bool = False

    def __len__(self) -> int:
        return len(self.inputs)

    def given(self, position: int) -> bool:
        """Whether there is an input at this position."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def known(self, position: int) -> bool:
        """Whether the input does not depend on the images."""
        return isinstance(self._input(position), Known)

    def tensor(self, position: int) -> Tensor:
        """An input to compute with, either a torch tensor or a traced one; torch functions apply to both."""
        value: Any = self._input(position)
        if isinstance(value, Traced):
            return value  # type: ignore[return-value]
        if self.place is not None:
            tensor: Tensor = value.values[self.place]
            return tensor.to("meta") if self.shapes_only else tensor
        if not value.constant:
            raise ModelError("uses the number of images in a computation other than a shape")
        return self.recorder.lift(value.values[0])  # type: ignore[return-value]

    def constant(self, position: int, what: str) -> Tensor:
        """The values of an input that must not depend on the images or their number."""
        value = self._input(position)
        if not isinstance(value, Known):
            raise ModelError(f"has {what} that depends on the images")
        if self.place is not None:
            return value.values[self.place]
        if not value.constant:
            raise ModelError(f"has {what} that depends on the number of images")
        return value.values[0]

    def operand(self, position: int, rank: int) -> Any:
        """An input to combine with a tensor of `rank` axes; a constant with one element as a number."""
        value = self._input(position)
        if self.place is None and isinstance(value, Known) and value.constant:
            tensor = value.values[0]
            if tensor.numel() == 1 and tensor.ndim <= rank:
                return tensor.item()
        return self.tensor(position)

    def by_batch(self, position: int) -> tuple[Tensor, ...] | None:
        """The values of an input for each batch size, if they depend on nothing else."""
        value = self._input(position)
        return value.values if self.place is None and isinstance(value, Known) and not value.constant else None

    def ints(self, position: int, what: str) -> list[Side]:
        """The integers of an input that may depend on the number of images but not on the images."""
        value = self._input(position)
        if not isinstance(value, Known):
            raise ModelError(f"has {what} that depends on the images")
        if value.values[0].is_floating_point() or value.values[0].ndim > 1:
            raise ModelError(f"has {what} that are not a list of integers")
        if self.place is not None or value.constant:
            return [int(number) for number in value.values[self.place or 0].reshape(-1).tolist()]
        return [side_of(numbers) for numbers in zip(*(v.reshape(-1).tolist() for v in value.values), strict=True)]

    def static_ints(self, position: int, what: str) -> list[int]:
        """Like `ints`, for integers that must not depend on the number of images."""
        numbers = self.ints(position, what)
        if any(isinstance(number, Dim) for number in numbers):
            raise ModelError(f"has {what} that depend on the number of images")
        return [int(number) for number in numbers]  # type: ignore[arg-type]

    def number(self, position: int, what: str) -> float | int:
        """The single number of an input."""
        tensor = self.constant(position, what)
        if tensor.numel() != 1:
            raise ModelError(f"has {what} of {tensor.numel()} numbers, expected one")
        number: float | int = tensor.item()
        return number

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute of the type of the default; raises ModelError if it has another type."""
        value = self.attributes.get(name, default)
        if isinstance(default, float) and isinstance(value, int):
            value = float(value)
        if default is not None and type(value) is not type(default):
            raise ModelError(f"has an attribute {name} that is {type(value).__name__}, not {type(default).__name__}")
        return value

    def ints_attribute(self, name: str) -> list[int] | None:
        """A list of integers, or None if the attribute is not given."""
        value = self.attributes.get(name)
        if value is not None and (not isinstance(value, list) or not all(isinstance(number, int) for number in value)):
            raise ModelError(f"has an attribute {name} that is not a list of integers")
        return value

    def axis(self, value: int, rank: int) -> int:
        """An axis counted from the front."""
        if not -rank <= value < max(rank, 1):
            raise ModelError(f"has the axis {value}, but its input has {rank} axes")
        return value % rank if rank else 0

    def module(self, module: nn.Module, on: Tensor | None = None) -> Tensor:
        """Apply a layer to the first input or to `on`; the layer is stored under the name of its weight or node."""
        value: Any = self.tensor(0) if on is None else on
        if isinstance(value, Traced):
            value = self.recorder.module(module.eval(), self.name, value)
        else:
            value = (module.to("meta") if self.shapes_only else module).eval()(value)
        result: Tensor = value
        return result

    def only_output(self) -> None:
        """Raise ModelError if outputs other than the first are used."""
        if any(self.outputs[1:]):
            raise ModelError("has further outputs in use, which are not supported")

    def whole_numbers(self, numbers: Sequence[Side], *, scalar: bool = False) -> Tensor | Known:
        """Integers as the result of an operator."""
        counts = len(self.recorder.batches)
        rows = [[number.values[k] if isinstance(number, Dim) else number for number in numbers] for k in range(counts)]
        tensors = [torch.tensor(row[0] if scalar else row, dtype=torch.int64) for row in rows]
        if self.place is not None:
            return tensors[self.place]
        if any(isinstance(number, Dim) for number in numbers):
            return Known(tuple(tensors))
        return Known((tensors[0],) * counts)

    def _input(self, position: int) -> Known | Traced:
        value = self.inputs[position] if position < len(self.inputs) else None
        if value is None:
            raise ModelError(f"lacks the required input {position + 1}")
        return value


def product(sides: Sequence[Side]) -> Side:
    """The product of sides."""
    dims = [side.values for side in sides if isinstance(side, Dim)]
    rest = math.prod(side for side in sides if isinstance(side, int))
    return side_of(rest * math.prod(column) for column in zip(*dims, strict=True)) if dims else rest
