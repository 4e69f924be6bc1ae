"""The bytes of one file, read by position: what every tile is made of."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable
from typing import Protocol

from pyrtrav.errors import PyramidError

Span = tuple[int, int]
"""Offset and length in bytes."""


class Source(Protocol):
    """An open file. Safe from any number of threads: nothing in it moves."""

    size: int
    """Bytes in all."""

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset`` on, fewer only where the file ends.

        Raises:
            OSError: they cannot be read.
        """

    def prefetch(self, spans: Iterable[Span]) -> None:
        """Say what will be read next, so that a slow source can fetch it at once."""

    def close(self) -> None: ...


class LocalFile:
    """A file on a disk. The system reads ahead by itself, so there is nothing to prefetch."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def prefetch(self, spans: Iterable[Span]) -> None:
        pass

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def is_url(path: str) -> bool:
    """Whether a path names a file somewhere else."""
    return "://" in path


def open_source(path: str) -> Source:
    """Open a file for reading by position.

    Raises:
        OSError: it cannot be opened.
        PyramidError: a URL, which needs the extra ``remote``.
    """
    if is_url(path):
        raise PyramidError(f"{path}: is a URL; download it first, pyrtrav reads local files")
    return LocalFile(path)


def identity(path: str) -> tuple[Hashable, ...]:
    """Return what tells a file from another under the same name, and from itself after a change.

    Raises:
        PyramidError: it is missing.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise PyramidError(f"{path}: {error.strerror or error}") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
