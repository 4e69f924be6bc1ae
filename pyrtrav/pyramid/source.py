"""The bytes of one file, read by position: what every tile is made of."""

from __future__ import annotations

import io
import os
from collections.abc import Hashable, Iterable
from typing import Protocol

from pyrtrav.cost import Cost
from pyrtrav.errors import PyramidError
from pyrtrav.pyramid.remote import RemoteFile

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


def full_name(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a file; a URL as it is."""
    path = os.fspath(path)
    return path if is_url(path) else os.path.abspath(path)


def short_name(path: str) -> str:
    """Return the last part of a path, or of a URL without its query."""
    return os.path.basename(path.partition("?")[0].rstrip("/") if is_url(path) else path)


def open_source(path: str, cost: Cost | None = None) -> Source:
    """Open a file, or a URL, for reading by position.

    Args:
        cost: counts the requests for a URL.

    Raises:
        OSError: a file cannot be opened.
        PyramidError: a URL cannot be opened, or the extra ``remote`` is missing.
    """
    return RemoteFile(path, cost or Cost()) if is_url(path) else LocalFile(path)


class BlockFile(io.RawIOBase):
    """A source as a file for a parser that seeks and reads little by little: what it reads is kept, in blocks.

    ``failure`` is the first error of the source: parsers of damaged files pass over errors.
    """

    _BLOCK = 64 << 10
    _MOST = 512 << 20

    def __init__(self, source: Source) -> None:
        self._source, self._at = source, 0
        self._blocks: dict[int, bytes] = {}
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        stop = self._source.size if size is None or size < 0 else min(self._at + size, self._source.size)
        if stop <= self._at:
            return b""
        numbers = range(self._at // self._BLOCK, -(-stop // self._BLOCK))
        self._fill(numbers)
        data = b"".join(self._blocks[number] for number in numbers)
        first = self._at - numbers[0] * self._BLOCK
        data = data[first : first + stop - self._at]
        self._at += len(data)
        return data

    def _fill(self, numbers: range) -> None:
        """Read the blocks that are missing, at once from the first to the last."""
        missing = [number for number in numbers if number not in self._blocks]
        if not missing:
            return
        start, stop = missing[0] * self._BLOCK, (missing[-1] + 1) * self._BLOCK
        try:
            if stop - start + len(self._blocks) * self._BLOCK > self._MOST:
                raise OSError(f"its directories take more than {self._MOST >> 20} MiB; the file may be damaged")
            data = self._source.read(start, stop - start)
            if len(data) != min(stop, self._source.size) - start:
                raise OSError(f"only {len(data)} of {stop - start} bytes at {start} could be read")
        except Exception as error:
            self.failure = self.failure or error
            raise
        for number in range(missing[0], missing[-1] + 1):
            at = number * self._BLOCK - start
            self._blocks[number] = data[at : at + self._BLOCK]


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
