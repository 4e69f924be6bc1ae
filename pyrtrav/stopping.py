"""Stopping a run from outside without losing what is done, and without leaving what is half done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """The process was asked to stop, by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
        """What a shell expects: 130 after an interrupt, 143 after a termination."""


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise ``Stopped`` in the block on the first SIGINT, SIGTERM or SIGHUP; the next one ends the process at once."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for one in numbers:
            signal.signal(one, signal.SIG_DFL)
        raise Stopped(number)

    before: list[Any] = [signal.signal(one, stop) for one in numbers]
    try:
        yield
    finally:
        for one, handler in zip(numbers, before, strict=True):
            signal.signal(one, handler)
