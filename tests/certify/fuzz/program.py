"""A network drawn as Python source: a few lines over `torch`, constants of many kinds, and the forward they make."""

from collections.abc import Callable
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, ...]
NAMES = {"torch": torch, "F": functional, "aten": torch.ops.aten}


@cache
def _compiled(text: str, mode: str) -> CodeType:
    return compile(text, "<program>", mode)


class Program(nn.Module):
    """The lines as a module; its `source` is printed by a failing test and can be pasted.

    Constants are attributes `c0, c1, ...`: buffers, parameters or plain tensors, which keep their own precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.answer = "x"

    @property
    def source(self) -> str:
        """The forward function as Python."""
        return "\n    ".join(["def forward(self, x):", *self.lines, f"return {self.answer}"])

    def forward(self, x: Tensor) -> Tensor:
        """Run the lines."""
        return self.observed(x, lambda value: value)

    def observed(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Run the lines, changing every new value."""
        names: dict[str, Any] = {**NAMES, "self": self, "x": change(x)}
        for line in self.lines:
            exec(_compiled(line, "exec"), names)
            name = line.split(" ", 1)[0]
            if isinstance(names.get(name), Tensor):
                names[name] = change(names[name])
        answer: Tensor = eval(_compiled(self.answer, "eval"), names)
        return answer

    def __repr__(self) -> str:
        plain = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        constants = {**dict(self.named_parameters()), **dict(self.named_buffers()), **plain}
        listed = [
            f"{name} = torch.tensor({value.tolist()}, dtype={value.dtype})  # {type(value).__name__}"
            for name, value in constants.items()
        ]
        return "\n".join(["", *listed, self.source])
