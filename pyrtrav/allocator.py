"""Two habits of the C libraries that suit neither thousands of images nor a training.

glibc gives a large block back to the system when it is freed, and raises what it calls large to the largest block
freed so far, 32 MB at most; what is smaller leaves holes between what stays. oneDNN keeps a compiled layer for each of
the last 1,024 shapes, and every number of patches is another shape.

Many images want memory that does not grow. Over 2,000 of them the peak rose from 476 to 505 MiB, with blocks of a fixed
size given back from 452 to 478, and with fewer layers kept from 453 to 469 (``python -m benchmarks.cohort``,
2026-11-21).

A training wants the same memory at every step. On a CPU the system hands it out anew, in pages of zeros, for every
feature map: a third of the time of a step of mnist-m3 on images of 56 px, half of that of mnist-m1 (system time of
processes on one thread, 2026-11-22).
"""

from __future__ import annotations

import ctypes
import os
import sys

LARGE_BYTES = 1 << 16
"""Blocks from this size on are mapped, and given back when they are freed, in `keep_memory_flat`."""

COMPILED_LAYERS = "64"
"""How many oneDNN keeps; a convolutional encoder has some tens of layers."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = -1
_USUAL_MMAP_MAX = 65536


def keep_memory_flat() -> None:
    """Give back what is freed, for many images one after the other.

    Call it before the first layer is computed, where oneDNN looks.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", COMPILED_LAYERS)
    _set_malloc(_M_MMAP_THRESHOLD, LARGE_BYTES)
    _set_malloc(_M_MMAP_MAX, _USUAL_MMAP_MAX)


def keep_freed_memory() -> None:
    """Keep what is freed, for the next step of a training."""
    _set_malloc(_M_MMAP_MAX, 0)
    _set_malloc(_M_TRIM_THRESHOLD, _NEVER)


def _set_malloc(option: int, value: int) -> None:
    """What the user has set stays, and a C library that is not glibc decides for itself."""
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(option, value)
