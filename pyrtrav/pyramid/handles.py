"""Which images hold their files open: thousands may be known, few of them are read at a time."""

from __future__ import annotations

from collections import OrderedDict
from threading import RLock
from typing import Protocol
from weakref import ref


class Parkable(Protocol):
    def park(self) -> bool:
        """Give back file handles and tables until the next use; False where it is in use."""


class Handles:
    """The open images, least recently used ones parked beyond ``limit``."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: OrderedDict[int, ref[Parkable]] = OrderedDict()
        self._lock = RLock()  # collecting garbage may close an image in the middle of all this

    def used(self, image: Parkable) -> None:
        """Note that an image is open and used now. To be called without holding any image's lock."""
        with self._lock:
            self._open[id(image)] = ref(image)
            self._open.move_to_end(id(image))
            excess = len(self._open) - self.limit
            oldest = list(self._open)[:-1] if excess > 0 else []
        for key in oldest:
            if excess <= 0:
                return
            with self._lock:
                known = self._open.pop(key, None)
            other = None if known is None else known()
            if known is not None and other is not None and not other.park():
                with self._lock:  # in use: its turn comes later
                    self._open.setdefault(key, known)
                    self._open.move_to_end(key, last=False)
                continue
            excess -= 1

    def forget(self, image: Parkable) -> None:
        """Note that an image was closed."""
        with self._lock:
            self._open.pop(id(image), None)

    def after_fork(self) -> None:
        """In a forked child: the lock may have been held by a thread that the child does not have."""
        self._lock = RLock()
