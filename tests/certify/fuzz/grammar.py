"""Whole programs: some lines of any production, and a head; drawn by hypothesis, or faster by seed.

Both ways draw whole numbers below a given one and nothing else, so a program is a list of numbers, and a failing one is
shrunk by leaving numbers out and making them smaller.
"""

import random
import re
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from tests.certify.fuzz import defined, elementwise, linear, moving, pooling, spellings, structures
from tests.certify.fuzz.draft import Below, Draft, UnfitError
from tests.certify.fuzz.productions import WEIGHTED
from tests.certify.fuzz.program import Program, Shape

FILES = (elementwise, linear, moving, pooling, structures, spellings, defined)
Drawn = tuple[Program, Shape]


@st.composite
def programs(draw: st.DrawFn) -> Drawn:
    """A network and the shape of its input, drawn by hypothesis."""
    return drawn(lambda count: draw(st.integers(0, count - 1)))


def drawn(below: Below) -> Drawn:
    """A network and the shape of its input."""
    d = Draft(below)
    for _ in range(d.number(2, 8)):
        try:
            d.one_of(*WEIGHTED).write(d)
        except (UnfitError, ZeroDivisionError):  # there are no divisors for empty values
            continue
    d.program.answer = _head(d)
    _without_dead_lines(d.program)
    return d.program, d.input_shape


def _head(d: Draft) -> str:
    """(N, classes) of the newest value."""
    v = list(d.values)[-1]
    if not d.shape(v):
        v = d.write(f"torch.stack([{v}, {d.value(lambda shape: not shape)}], 1)")
    width = d.values[v][0].numel()
    if not width:
        v, width = "x", d.values["x"][0].numel()
    if d.number(0, 2) or width == 1:
        return f"{v}.flatten(1) @ {d.constant((d.number(1, 4), width))}.T"
    return f"{v}.flatten(1)"


def _without_dead_lines(program: Program) -> None:
    needed, kept = set(re.findall(r"\bv\d+\b", program.answer)), []
    for line in reversed(program.lines):
        names = re.findall(r"\bv\d+\b", line)
        if names[0] in needed:
            needed.update(names)
            kept.append(line)
    program.lines = kept[::-1]


class Recorded:
    """Draws numbers from a list, 0 beyond its end, and records those that were used."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers, self.place = numbers, 0

    def __call__(self, count: int) -> int:
        number = self.numbers[self.place] if self.place < len(self.numbers) else 0
        self.place += 1
        return number % count


def numbers_of(seed: int) -> list[int]:
    """The numbers of that seed; more than any program needs."""
    rng = random.Random(seed)
    return [rng.randrange(2**20) for _ in range(400)]


def shrunk(numbers: Sequence[int], fails: Callable[[Drawn], bool], tries: int = 300) -> list[int]:
    """Fewer and smaller numbers whose program still fails."""
    reader = Recorded(numbers)
    drawn(reader)
    best, left, size = list(numbers[: reader.place]), tries, max(1, reader.place // 2)
    while size and left > 0:
        place = 0
        while place < len(best) and left > 0:
            cut, zeros = best[:place] + best[place + size :], best[:place] + [0] * len(best[place : place + size])
            for candidate in (cut, zeros + best[place + size :]):
                left -= 1
                if candidate != best and fails(drawn(Recorded(candidate))):
                    best = candidate
                    break
            else:
                place += size
        size //= 2
    return best
