"""Memory that goes back: without this a run over thousands of images grows by fragments of what it has given up.

glibc raises the size from which on it maps memory of its own (and gives it back at once) to that of the largest block
freed so far, 32 MB at most; below, tiles and patches of all sizes leave holes between what stays. Over 2,000 images the
peak rose from 476 to 505 MiB, and with a fixed size from 452 to 478 (`python -m benchmarks.cohort`, 2026-11-21).
"""

from __future__ import annotations

import ctypes
import sys

LARGE_BYTES = 1 << 16
"""Blocks from this size on are mapped, and given back when they are freed."""

_M_MMAP_THRESHOLD = -3


def give_back_large_blocks() -> None:
    """Tell the C library to; one that is not glibc decides for itself."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
