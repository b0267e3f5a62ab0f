"""What the code of a model consists of: whose it is, and the names that it reads."""

import dis
import sys
import types
from functools import lru_cache
from typing import Any

# Packages whose own code is not followed; what they are made of is compared by identity.
FOREIGN = frozenset(sys.stdlib_module_names | {"torch", "numpy", "scipy", "torchvision", "robustres", "PIL"}) - {
    "__main__"
}


def is_foreign(value: Any) -> bool:
    """Whether a function, a class or an object of such a package."""
    return str(getattr(value, "__module__", "")).split(".")[0] in FOREIGN


@lru_cache(maxsize=10_000)
def names_of(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names of globals that the code reads, and all names in it."""
    read = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [names_of(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return frozenset(read.union(*(one for one, _ in inner))), frozenset(code.co_names).union(
        *(all_ for _, all_ in inner)
    )
