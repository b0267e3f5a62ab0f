"""Definition of productions, and the list of all of them with the ATen operations that each can draw."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.certify.fuzz.draft import Draft


@dataclass(frozen=True)
class Production:
    """A function that writes one or more lines; operations: the ATen operations that it can draw."""

    write: Callable[[Draft], None]
    operations: tuple[str, ...]


PRODUCTIONS: list[Production] = []
# The productions, repeated according to their weights.
WEIGHTED: list[Production] = []


def draws(*operations: str, weight: int = 2) -> Callable[[Callable[[Draft], None]], Callable[[Draft], None]]:
    """Register a production."""

    def register(function: Callable[[Draft], None]) -> Callable[[Draft], None]:
        production = Production(function, operations)
        PRODUCTIONS.append(production)
        WEIGHTED.extend([production] * weight)
        return function

    return register
