"""Time taken by each attack and each certificate of a part."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(eq=False)
class Timing:
    """Wall-clock seconds of the steps of one part, as rows of `robustres.results.TIMINGS`.

    first: index of the part's first sample. samples: how many it has.
    """

    first: int
    samples: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def of(
        self, side: Literal["attack", "certificate"], name: str, norm: str = "", eps: float = math.nan
    ) -> Iterator[dict[str, Any]]:
        """Measure the body as one step; results are on the CPU when it ends, so that a GPU's work is counted.

        Yields the row, for a body that determines the norm itself.
        """
        row: dict[str, Any] = {"first": self.first, "samples": self.samples, "side": side, "name": name}
        row |= {"norm": norm, "eps": eps}
        begun = time.perf_counter()
        yield row
        self.rows.append({**row, "seconds": time.perf_counter() - begun})
