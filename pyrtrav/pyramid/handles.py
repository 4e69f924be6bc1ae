"""Which images hold their files open: thousands may be known, few of them are read at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from threading import Lock
from typing import Protocol
from weakref import ref


class Parkable(Protocol):
    def park(self) -> None:
        """Give back file handles and tables until the next use; nothing where it is in use."""


class Handles:
    """The open images, least recently used ones parked beyond ``limit``."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: OrderedDict[int, ref[Parkable]] = OrderedDict()
        self._lock = Lock()

    def used(self, image: Parkable) -> None:
        """Note that an image is open and used now. To be called without holding any image's lock."""
        oldest: list[ref[Parkable]] = []
        with self._lock:
            self._open[id(image)] = ref(image)
            self._open.move_to_end(id(image))
            while len(self._open) > self.limit:
                oldest.append(self._open.popitem(last=False)[1])
        for known in oldest:
            parked = known()
            if parked is not None:
                parked.park()

    def forget(self, image: Parkable) -> None:
        """Note that an image was closed."""
        with self._lock:
            self._open.pop(id(image), None)

    def after_fork(self) -> None:
        """In a forked child: the lock may have been held by a thread that the child does not have."""
        self._lock = Lock()


def default_limit() -> int:
    """``PYRTRAV_OPEN_IMAGES``, else 256."""
    return max(1, int(os.environ.get("PYRTRAV_OPEN_IMAGES", 256)))
