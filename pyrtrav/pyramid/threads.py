"""The process's decoding threads, and what a forked child must not inherit."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, RLock

from pyrtrav.pyramid import limits

_POOL: ThreadPoolExecutor | None = None
_SIZE = 0
_LOCK = Lock()

reopening = RLock()
"""Held while a pyramid is reopened in a forked child."""


def decode_threads() -> int:
    """``PYRTRAV_THREADS``, else the processors that this process may use."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return limits.threads() or available or 1


def decode_pool() -> ThreadPoolExecutor:
    """The decoding threads of this process, started when first needed."""
    global _POOL, _SIZE
    with _LOCK:
        threads = decode_threads()
        if _POOL is None or threads != _SIZE:
            _POOL, _SIZE = ThreadPoolExecutor(threads, thread_name_prefix="pyrtrav-decode"), threads
        return _POOL


def _forget() -> None:
    # Threads do not survive a fork, and a lock that another thread held would never be released.
    global _POOL, _LOCK, reopening
    _POOL, _LOCK, reopening = None, Lock(), RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
