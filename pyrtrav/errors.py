"""Every error that pyrtrav raises on purpose.

    PyrtravError
      PyramidError
        UnsupportedFormatError (ValueError)   no backend can open the file; lists what each one said
        CorruptImageError      (OSError)      opened, but tags or pixels cannot be read: file, level, column, row
          ImageChangedError                   the file is not the one that was opened
        RegionError            (ValueError)   a region that cannot be read
        TimeLimitError                        opening and reading took longer than was allowed
      WorkerLostError                         the process that was to classify the image ended twice
      ConfigError   (ValueError)              an unknown or impossible option; suggests the nearest name
      DatasetError  (ValueError)              training data that cannot be used; names file and line
      ModelFileError (ValueError)             not ours, wrong version, or does not fit the method
      TreeError     (ValueError)              a parse tree that is not one

A message says what is wrong, with which file, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class PyrtravError(Exception):
    """Anything that pyrtrav raises on purpose."""


class PyramidError(PyrtravError):
    """An image cannot be opened or read."""


class UnsupportedFormatError(PyramidError, ValueError):
    """No backend can open the file."""


class CorruptImageError(PyramidError, OSError):
    """The file was recognised, but its tags or pixels cannot be read."""

    def __init__(
        self,
        path: str,
        reason: str,
        *,
        level: int | None = None,
        column: int | None = None,
        row: int | None = None,
    ) -> None:
        self.path, self.reason = path, reason
        self.level, self.column, self.row = level, column, row
        where = "" if level is None else f": level {level}, tile column {column}, row {row}"
        super().__init__(f"{path}{where}: {reason}")

    def __str__(self) -> str:
        # OSError would print a tuple for several arguments; ours has one.
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        return _corrupt, (self.path, self.reason, self.level, self.column, self.row)


def _corrupt(path: str, reason: str, level: int | None, column: int | None, row: int | None) -> CorruptImageError:
    return CorruptImageError(path, reason, level=level, column=column, row=row)


class ImageChangedError(CorruptImageError):
    """The file is not the one that was opened: it was written to, replaced or removed."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "the file changed since it was opened; open it again")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path,)


class RegionError(PyramidError, ValueError):
    """A region that cannot be read, such as one without area."""


class TimeLimitError(PyramidError):
    """Opening and reading an image took longer than was allowed."""


class WorkerLostError(PyrtravError):
    """The process that was to classify an image ended, and so did the next one."""


class ConfigError(PyrtravError, ValueError):
    """An unknown or impossible option."""


class DatasetError(PyrtravError, ValueError):
    """Training data that cannot be used."""


class ModelFileError(PyrtravError, ValueError):
    """A model file that is not ours, damaged, or does not fit the method."""


class TreeError(PyrtravError, ValueError):
    """A parse tree that is not one."""


def without_frames(error: E) -> E:
    """Return the error without the stacks of it and its causes, which would keep alive all that was at work then."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` or the list of known names, to end a ConfigError's message."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(choices)}"
