"""Console output of the commands: progress on standard error, tables on standard output."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

WIDE = 100  # terminal width, in columns, from which tables have lines
output = Console()
notes = Console(stderr=True)


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, done, total) that advances one bar per stage; silent if standard error is not a terminal.

    The bar is followed by the elapsed and the remaining time.
    """
    text, times = TextColumn("{task.description:<28}"), (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (text, BarColumn(bar_width=None), MofNCompleteColumn(), *times)
    with Progress(*columns, console=notes, disable=quiet or not notes.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage == "attack and certify":  # counted in parts; the same stage counted in samples advances more often
                return
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


@contextmanager
def clock(stage: str, seconds: float, advance: Callable[[str, int, int], None]) -> Iterator[None]:
    """Advance a bar by the seconds that have passed, out of the most that the body may take."""
    over = threading.Event()
    begun = time.monotonic()

    def tick() -> None:
        while not over.wait(0.5):
            advance(stage, min(int(time.monotonic() - begun), int(seconds)), max(1, int(seconds)))

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def invocation() -> list[str]:
    """This command line, quoted for a shell, however it was called; without torchrun, which does not change results.

    >>> invocation()[0] in ("robustres", "python")
    True
    """
    called = ["python", "-m", "robustres"] if Path(sys.argv[0]).name == "__main__.py" else ["robustres"]
    return [*called, *sys.argv[1:]]


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str | None = None
) -> None:
    """One table; the first column is text, the others are numbers."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    if output.width < WIDE:  # no lines between columns, so that more columns fit
        table.box, table.pad_edge, table.padding = box.SIMPLE_HEAD, False, (0, 1, 0, 0)
    for position, column in enumerate(header):
        longest = max([len(column), *(len(word) for row in rows for word in row[position].split())]) if position else 8
        table.add_column(column, justify="right" if position else "left", overflow="fold", min_width=min(longest, 12))
    for row in rows:
        table.add_row(*row)
    output.print(table)


def percent(share: float | None, *, up: bool | None = None) -> str:
    """A share as a percentage: rounded to nearest, or rounded up (`up`), or rounded down.

    >>> percent(0.861)
    '86.1 %'
    """
    from robustres.results import share_text

    return "-" if share is None else share_text(share, up=up)


def eps_text(eps: float) -> str:
    """An eps, written as a fraction of 255 if it is one.

    >>> eps_text(8 / 255), eps_text(0.5)
    ('8/255', '0.5')
    """
    from robustres.results import eps_words

    return eps_words(eps)
