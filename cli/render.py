"""How things look on a terminal: tables on stdout, everything else on stderr."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

stdout = Console()
stderr = Console(stderr=True)


def printed(line: str) -> bool:
    """Print a line on stdout; returns whether anybody reads there, and if not, nothing more goes there."""
    try:
        typer.echo(line)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return False
    return True


def note(message: str, quiet: bool) -> None:
    """Say something on stderr that is no result."""
    if not quiet:
        stderr.print(f"[dim]{escape(message)}[/]", highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    stderr.print(f"[yellow]warning:[/] {escape(message)}", highlight=False, soft_wrap=True)


class _Notes(logging.Handler):
    """Prints what the package logs, such as that a large image is being converted."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage(), quiet=False)


def show_log(quiet: bool) -> None:
    """Print what the package logs on stderr; errors only where ``quiet``."""
    log = logging.getLogger("pyrtrav")
    log.handlers = [_Notes(logging.ERROR if quiet else logging.INFO)]


def _bars(quiet: bool, *columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        console=stderr,
        transient=True,
        disable=quiet or not stderr.is_terminal,
    )


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """A progress bar on stderr; none when that is no terminal."""
    with _bars(quiet, MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        yield bar


@contextmanager
def shares(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """Yield what shows (what is being done, its share 0..1) as bars on stderr; none when that is no terminal."""
    with _bars(quiet, TaskProgressColumn(), TimeRemainingColumn()) as bars:
        tasks: dict[str, TaskID] = {}

        def report(doing: str, share: float) -> None:
            if doing not in tasks:
                tasks[doing] = bars.add_task(doing, total=1.0)
            bars.update(tasks[doing], completed=share)

        yield report


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
    """A table whose numbers are flush right."""
    rows = [[str(value) for value in row] for row in rows]
    made = Table(title=title, title_justify="left", header_style="bold")
    for i, name in enumerate(columns):
        numbers = all(row[i].replace(",", "").lstrip("-")[:1].isdigit() or row[i] in ("", "-") for row in rows)
        made.add_column(name, justify="right" if rows and numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def pairs(values: Iterable[tuple[str, Any]], *, title: str | None = None) -> Table:
    """Names and values, without a header."""
    made = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in values:
        made.add_row(name, escape(str(value)))
    return made


def size(count: float | None) -> str:
    """Bytes as people say them."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
