"""A program while it is being drawn: the values so far, on a probe, and how a production draws from them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tests.certify.fuzz.constants import KEPT, KINDS, constant
from tests.certify.fuzz.program import NAMES, Program, Shape

MOST_NUMBERS = 36  # elements of one sample in one value
PROBED = 3
INPUTS: tuple[Shape, ...] = (
    *((4,), (2, 1, 1), (2, 2, 2), (1, 3, 3), (2, 3), (1,), (1, 1, 1), (3, 2, 2), (12,), (3, 1, 3), (1, 2, 2, 2)),
    *((2, 1), (1, 1, 4), (4, 1, 1)),
)
# A random integer below the given one, the only source of randomness of a program.
Below = Callable[[int], int]
T = TypeVar("T")


class UnfitError(Exception):
    """The production does not fit the available values."""


class Draft:
    """A program line by line; each is run at once on a probe, so that every production knows its operands' shapes."""

    def __init__(self, below: Below) -> None:
        self.below, self.program = below, Program().eval()
        self.input_shape = self.one_of(*INPUTS)
        probe = torch.rand(PROBED, *self.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        self.values: dict[str, Tensor] = {"x": probe}
        self.names: dict[str, Any] = {**NAMES, "self": self.program, "x": probe}
        self.constants = 0
        self.kept: dict[str, Shape] = {}

    # Draws used by productions.

    def one_of(self, *choices: T) -> T:
        """One of the choices; shrinks to the first."""
        return choices[self.below(len(choices))]

    def number(self, low: int, high: int) -> int:
        """An integer; shrinks to the lowest."""
        return low + self.below(high - low + 1)

    def chance(self) -> bool:
        """Yes or no; shrinks to no."""
        return self.below(2) == 1

    def real(self) -> float:
        """A real number, mostly of ordinary size."""
        return self.one_of(1.0, 0.5, -1.0, 2.0, -0.3, 0.0, 3.7, 1e-160, 1e150)

    def order(self, count: int) -> list[int]:
        """A random permutation of 1 to `count`."""
        left = list(range(1, count + 1))
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def value(self, fits: Callable[[Shape], bool] = lambda shape: True) -> str:
        """A value whose shape of one sample fits, mostly the newest."""
        found = [name for name, value in self.values.items() if fits(tuple(value.shape[1:]))][::-1]
        if not found:
            raise UnfitError
        return self.one_of(*found[:1] * 2 * len(found), *found)

    def shape(self, name: str) -> Shape:
        """The shape of one sample."""
        return tuple(self.values[name].shape[1:])

    def axis(self, name: str) -> int:
        """An axis of the value, counted from either end, rarely the batch axis."""
        rank = self.values[name].ndim
        if rank == 1:
            raise UnfitError
        axis = self.number(1, rank - 1) if self.number(0, 30) else 0
        return axis - rank if self.chance() else axis

    def axes(self, name: str) -> list[int]:
        """Some axes, each once."""
        rank = self.values[name].ndim
        chosen = sorted({self.number(1, max(1, rank - 1)) for _ in range(self.number(1, 3))})
        return [axis - rank if self.chance() else axis for axis in chosen if axis < rank]

    def constant(self, shape: Sequence[int], *, values: Tensor | None = None, any_type: bool = False) -> str:
        """A new constant of the shape, kept as a buffer, a parameter or a plain tensor, which may be of float32."""
        if values is None:
            alike = [name for name, of in self.kept.items() if of == tuple(shape) and not any_type]
            if alike and self.number(0, 3) == 0:
                return self.one_of(*alike)  # a layer used twice
            generator = torch.Generator().manual_seed(self.below(2**16))
            values = constant(self.one_of(*KINDS), tuple(shape), generator)
        name, kept = f"c{self.constants}", self.one_of(*KEPT)
        self.constants += 1
        if kept == "buffer":
            self.program.register_buffer(name, values)
        elif kept == "parameter":
            self.program.register_parameter(name, nn.Parameter(values))
        else:  # "plain" is converted to float32, where extreme values are not representable
            narrow = values.to(torch.float32)
            fits = any_type and kept == "plain" and bool(torch.isfinite(narrow).all())
            setattr(self.program, name, narrow if fits else values)
        if not any_type:
            self.kept[f"self.{name}"] = tuple(shape)
        return f"self.{name}"

    def broadcasting(self, name: str, *, larger: bool = True) -> str:
        """A constant that broadcasts against the value, from either side."""
        shape = list(self.shape(name))
        for place, side in enumerate(shape):
            if side == 1 and larger and self.number(0, 3) == 0:
                shape[place] = self.number(2, 4)
            elif self.number(0, 2) == 0:
                shape[place] = 1
        lead = self.one_of("", "1", "cut", "more") if shape else "1"
        if lead == "1":
            shape.insert(0, 1)
        elif lead == "cut":
            while shape and self.chance():
                shape.pop(0)
        elif lead == "more" and larger and self.number(0, 3) == 0:
            shape = [1, self.number(1, 3), *shape]
        return self.constant(shape, any_type=True)

    # Output of productions.

    def write(self, expression: str) -> str:
        """Add one or several values given by an expression, and return the name of the first. Raises UnfitError if
        torch fails or the result is too large."""
        name = f"v{len(self.program.lines)}"
        return self.run(f"{name} = {expression}", name)

    def run(self, line: str, name: str) -> str:
        """Add any line that assigns to the name."""
        try:
            exec(line, self.names)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            raise UnfitError(str(error)) from error
        made = self.names[name]
        parts = {name: made} if isinstance(made, Tensor) else {f"{name}[{k}]": part for k, part in enumerate(made)}
        usable = {part: value for part, value in parts.items() if _usable(value)}
        if not usable:
            raise UnfitError
        self.program.lines.append(line)
        self.values.update(usable)
        return next(iter(usable))


def _usable(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim > 0
        and len(value) == PROBED
        and math.prod(value.shape[1:]) <= MOST_NUMBERS
    )
