"""Images that are decoded in processes of their own, which are replaced when they crash or hang.

OpenSlide and the codecs are C: a damaged file may end the process that reads it, or keep it busy for ever. Here a tile
is decoded by one of a few *readers*, each a process that is asked over a pipe; everything else (levels, cache, pixel
rule, costs) is what it is without them. A reader that dies or does not answer costs the image that it was asked for.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from threading import Lock, Semaphore
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import (
    CorruptImageError,
    PyramidError,
    TimeLimitError,
    UnsupportedFormatError,
    without_frames,
)
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.omezarr import OmeZarrPyramid
from pyrtrav.pyramid.raster import RasterPyramid
from pyrtrav.pyramid.slide import SlidePyramid
from pyrtrav.pyramid.striped import StripedTiffPyramid
from pyrtrav.pyramid.threads import decode_threads
from pyrtrav.pyramid.tiff import TiffPyramid
from pyrtrav.pyramid.tiles import RawTile
from pyrtrav.pyramid.time_limit import TimeLimit

PATIENCE_SECONDS = 300.0
"""A reader that has not answered by then hangs, whatever the image's time limit."""

START_SECONDS = 300.0
"""A reader that has not started by then never will."""

IMPORTS: list[str] = []
"""Modules that a reader imports when it starts: those that change ``BACKENDS``."""

_CALL = "import sys; from pyrtrav.pyramid.isolated_child import main; main(*sys.argv[1:])"
_POLL_SECONDS = 0.2

Answer = tuple[dict[str, Any], NDArray[Any] | None]
"""What a reader says, and the samples that go with it."""


class _DiedError(Exception):
    """The reader is no more; the message says how it ended."""


class _Reader:
    """One process that decodes."""

    def __init__(self, path: str, limit: TimeLimit) -> None:
        """Start it for a file; the time that this takes is not the image's.

        Raises:
            PyramidError: it does not start.
        """
        self._pipe, theirs = Pipe()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the reader)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CALL, str(theirs.fileno()), *IMPORTS],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # an interrupt from the keyboard is for the program, which ends its readers
        )
        theirs.close()
        self.asked: set[str] = set()
        """The files that it was asked for."""
        try:
            with limit.waiting():
                self._answer(path, limit, START_SECONDS)  # what it says first
        except _DiedError as died:
            self.end()
            raise PyramidError(f"{path}: the process that was to read it did not start ({died})") from None
        except BaseException:
            self.end()
            raise

    def ask(self, request: dict[str, Any], path: str, limit: TimeLimit) -> Answer:
        """Return its answer.

        Raises:
            _DiedError: it ended.
            PyramidError: there was none in time; the reader is still busy then.
        """
        self.asked.add(path)
        try:
            self._pipe.send_bytes(json.dumps(request).encode())
        except (BrokenPipeError, ConnectionResetError):
            raise _DiedError(self._how_it_ended()) from None
        return self._answer(path, limit, PATIENCE_SECONDS)

    def _answer(self, path: str, limit: TimeLimit, patience: float) -> Answer:
        asked_at = time.monotonic()
        try:
            while not self._pipe.poll(min(_POLL_SECONDS, max(0.0, limit.left))):
                limit.check(path)
                if time.monotonic() - asked_at > patience:
                    raise TimeLimitError(f"{path}: its reader did not answer for {patience:g} s")
            answer: dict[str, Any] = json.loads(self._pipe.recv_bytes())
            if "shape" not in answer:
                return answer, None
            samples = np.frombuffer(self._pipe.recv_bytes(), answer["dtype"])
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise _DiedError(self._how_it_ended()) from None
        return answer, samples.reshape(answer["shape"])

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        words = self._said.read().decode(errors="replace").strip().splitlines()
        last = f": {words[-1][:200]}" if words else ""
        return f"{signal.Signals(-code).name if code < 0 else f'exit code {code}'}{last}"

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._pipe.close()
        self._said.close()


class Readers:
    """As many readers as there are decoding threads, started when first needed."""

    def __init__(self) -> None:
        self._idle: list[_Reader] = []
        self._lock = Lock()
        self._free = Semaphore(decode_threads())

    @contextmanager
    def turn(self, limit: TimeLimit) -> Iterator[None]:
        """Wait until one of the readers is free, which does not count, and keep it for the block."""
        with limit.waiting():
            self._free.acquire()
        try:
            yield
        finally:
            self._free.release()

    def ask(self, request: dict[str, Any], path: str, limit: TimeLimit) -> Answer:
        """Return what a reader answers, in a turn; where one crashes that had other files open, a fresh one is asked.

        Raises:
            CorruptImageError: the reader crashed.
            TimeLimitError: it did not answer in time.
            PyramidError: what it said of the file, or no reader starts.
        """
        limit.check(path)
        reader = self._take(path, limit)
        while True:
            try:
                return self._asked(reader, request, path, limit)
            except _DiedError as died:
                if reader.asked == {path}:
                    raise CorruptImageError(path, f"its reader crashed ({died}); the file may be damaged") from died
            reader = _Reader(path, limit)  # another file may have broken the last one

    def _take(self, path: str, limit: TimeLimit) -> _Reader:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Reader(path, limit)

    def _asked(self, reader: _Reader, request: dict[str, Any], path: str, limit: TimeLimit) -> Answer:
        try:
            answer = reader.ask(request, path, limit)
        except BaseException:
            reader.end()
            raise
        with self._lock:
            self._idle.append(reader)
        return answer

    def close(self) -> None:
        """End the readers that are idle; the next question starts others."""
        with self._lock:
            idle, self._idle = self._idle, []
        for reader in idle:
            reader.end()


_READERS: Readers | None = None
_LOCK = Lock()


def readers() -> Readers:
    """The readers of this process."""
    global _READERS
    with _LOCK:
        if _READERS is None:
            _READERS = Readers()
        return _READERS


def close_readers() -> None:
    """End the processes that decode; they are started again when needed."""
    if _READERS is not None:
        _READERS.close()


def _forget() -> None:
    # In a forked child: they are the parent's. They are kept, unused, as dropping them would close them.
    global _READERS, _LOCK
    _LOCK = Lock()
    if _READERS is not None:
        _OTHERS.append(_READERS)
        _READERS = None


_OTHERS: list[Readers] = []
atexit.register(close_readers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class Isolated(Pyramid):
    """Decodes in a reader. Once that crashed or hung, nothing more is asked for this image."""

    _dead: PyramidError | None = None

    def _ask(self, what: str, **words: Any) -> Answer:
        request = {
            "what": what,
            "path": self.path,
            "backend": self.backend,
            "channels": self._options["channels"],
            "state": repr(self._identity),
            **words,
        }
        pool = readers()
        self._check_alive()
        with pool.turn(self.limit):
            self._check_alive()  # it may have died while this waited, and is not to be paid for again
            try:
                answer, samples = pool.ask(request, self.path, self.limit)
            except PyramidError as error:
                self._dead = without_frames(error)
                raise
        if "error" in answer:
            raise _error(self.path, **answer["error"])
        return answer, samples

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise self._dead

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile | None:
        answer, samples = self._ask("tile", tile=[level, column, row, shrink])
        return None if samples is None else RawTile(samples, answer["stored_bytes"])


def _error(path: str, kind: str, reason: str, tile: Sequence[int | None] = (None, None, None)) -> PyramidError:
    """What the reader raised."""
    if kind == "corrupt":
        level, column, row = tile
        return CorruptImageError(path, reason, level=level, column=column, row=row)
    return UnsupportedFormatError(reason) if kind == "unsupported" else PyramidError(reason)


class IsolatedSlide(Isolated, SlidePyramid):
    """OpenSlide's formats are opened in a reader too: their tables are parsed in C."""

    def header(self) -> tuple[dict[str, str], list[tuple[int, int]]]:
        answer, _ = self._ask("header")
        return answer["properties"], [(width, height) for width, height in answer["sizes"]]


class IsolatedTiff(Isolated, TiffPyramid):
    """A TIFF file."""


class IsolatedStripedTiff(Isolated, StripedTiffPyramid):
    """A large TIFF in strips."""


class IsolatedOmeZarr(Isolated, OmeZarrPyramid):
    """An OME-Zarr folder."""


class IsolatedRaster(Isolated, RasterPyramid):
    """A flat image."""


_ISOLATED: dict[type[Pyramid], type[Pyramid]] = {
    SlidePyramid: IsolatedSlide,
    TiffPyramid: IsolatedTiff,
    StripedTiffPyramid: IsolatedStripedTiff,
    OmeZarrPyramid: IsolatedOmeZarr,
    RasterPyramid: IsolatedRaster,
}


def isolated_class(kind: type[Pyramid]) -> type[Pyramid]:
    """Return the class that reads the same images, decoding in a process of its own."""
    for known, apart in _ISOLATED.items():
        if issubclass(kind, known):
            return apart
    return type(f"Isolated{kind.__name__}", (Isolated, kind), {})
