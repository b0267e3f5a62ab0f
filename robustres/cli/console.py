"""What the commands show: progress on standard error, tables on standard output."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

output = Console()
notes = Console(stderr=True)


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, done, total) that moves one bar per stage; silent where nobody watches a terminal."""
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes, disable=quiet or not notes.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def invocation() -> list[str]:
    """This command as words that a shell understands, however it was called; without torchrun, which changes no result.

    >>> invocation()[-1] == sys.argv[-1]
    True
    """
    called = ["python", "-m", "robustres"] if Path(sys.argv[0]).name == "__main__.py" else ["robustres"]
    return [*called, *sys.argv[1:]]


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str | None = None
) -> None:
    """One table; the first column is text, the others are numbers."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for position, column in enumerate(header):
        table.add_column(column, justify="right" if position else "left", overflow="fold", min_width=len(column))
    for row in rows:
        table.add_row(*row)
    output.print(table)


def percent(share: float | None) -> str:
    """A share as a percentage.

    >>> percent(0.861)
    '86.1 %'
    """
    return "-" if share is None else f"{100 * share:.1f} %"


def eps_text(eps: float) -> str:
    """An eps as the fraction of 255 that it is, where it is one.

    >>> eps_text(8 / 255), eps_text(0.5)
    ('8/255', '0.5')
    """
    from robustres.results import eps_words

    return eps_words(eps)
