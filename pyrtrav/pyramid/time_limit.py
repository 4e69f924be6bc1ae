"""How long opening and reading one image may take."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock

from pyrtrav.errors import ConfigError, PyramidError, TimeLimitError


class TimeLimit:
    """Seconds that an image has for opening and reading; what is done with its pixels does not count.

    It is looked at before every tile, so a decoder that does not come back is beyond it, unless it runs in a process
    of its own (see ``isolated``).
    """

    def __init__(self, seconds: float | None = None, stopped: Event | None = None) -> None:
        """Allow so many seconds, None for any number; once ``stopped`` is set, nothing more is read."""
        check_seconds(seconds)
        self.seconds = math.inf if seconds is None else seconds
        self._stopped = stopped or Event()
        self._spent, self._since, self._readers = 0.0, 0.0, 0
        self._lock = Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time that the block takes; several at a time count once."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within ``running``: do not count the block, in which this thread waits for what others hold."""
        self._count(-1)
        try:
            yield
        finally:
            self._count(1)

    def _count(self, change: int) -> None:
        with self._lock:
            now = time.monotonic()
            if self._readers > 0:
                self._spent += now - self._since
            self._since = now
            self._readers += change

    @property
    def left(self) -> float:
        """Seconds."""
        with self._lock:
            running = time.monotonic() - self._since if self._readers > 0 else 0.0
            return self.seconds - self._spent - running

    def check(self, path: str) -> None:
        """Raise TimeLimitError where the time is spent, and PyramidError where reading is to stop."""
        if self._stopped.is_set():
            raise PyramidError(f"{path}: reading was stopped")
        if self.seconds < math.inf and self.left <= 0:
            raise TimeLimitError(
                f"{path}: opening and reading it took more than {self.seconds:g} s; give it more with --max-seconds"
            )


def check_seconds(seconds: float | None) -> None:
    """Raise ConfigError for a time that is none."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise ConfigError(f"max-seconds is a number of seconds above 0, got {seconds}")
