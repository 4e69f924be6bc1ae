"""When a run that may take so many minutes is to stop."""

from __future__ import annotations

import time
from collections.abc import Callable


def deadline(minutes: float | None) -> Callable[[], bool]:
    """Return what says whether these minutes, from now on, are over; without any they never are."""
    end = None if minutes is None else time.monotonic() + 60 * minutes
    return lambda: end is not None and time.monotonic() > end
