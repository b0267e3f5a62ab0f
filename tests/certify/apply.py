"""A function as a module, for tests."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Apply(nn.Module):
    """A function of the input as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)
