"""What the commands show: progress on standard error, tables on standard output."""

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

WIDE = 100  # columns of a terminal from which tables have lines
output = Console()
notes = Console(stderr=True)


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, done, total) that moves one bar per stage; silent where nobody watches a terminal.

    Behind the bar stand the time that it took and the time that is left.
    """
    text, times = TextColumn("{task.description:<28}"), (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (text, BarColumn(bar_width=None), MofNCompleteColumn(), *times)
    with Progress(*columns, console=notes, disable=quiet or not notes.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage == "attack and certify":  # in parts; the same in samples moves more often
                return
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


@contextmanager
def clock(stage: str, seconds: float, advance: Callable[[str, int, int], None]) -> Iterator[None]:
    """Move a bar by the seconds that have passed, of those that the body may take at most."""
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
    """This command as words that a shell understands, however it was called; without torchrun, which changes no result.

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
    if output.width < WIDE:  # no lines between columns, so that more of them fit
        table.box, table.pad_edge, table.padding = box.SIMPLE_HEAD, False, (0, 1, 0, 0)
    for position, column in enumerate(header):
        longest = max([len(column), *(len(word) for row in rows for word in row[position].split())]) if position else 8
        table.add_column(column, justify="right" if position else "left", overflow="fold", min_width=min(longest, 12))
    for row in rows:
        table.add_row(*row)
    output.print(table)


def percent(share: float | None, *, up: bool | None = None) -> str:
    """A share as a percentage: the nearest, or never below it (`up`), or never above it.

    >>> percent(0.861)
    '86.1 %'
    """
    from robustres.results import share_text

    return "-" if share is None else share_text(share, up=up)


def eps_text(eps: float) -> str:
    """An eps as the fraction of 255 that it is, where it is one.

    >>> eps_text(8 / 255), eps_text(0.5)
    ('8/255', '0.5')
    """
    from robustres.results import eps_words

    return eps_words(eps)
