"""Memory that does not grow: two of the C libraries' habits add up over thousands of images.

glibc raises the size from which on it maps memory of its own (and gives it back at once) to that of the largest block
freed so far, 32 MB at most; below, tiles and patches of all sizes leave holes between what stays. oneDNN keeps a
compiled layer for each of the last 1,024 shapes, and every number of patches is another shape. Over 2,000 images the
peak rose from 476 to 505 MiB, with a fixed size from 452 to 478, and with fewer layers kept from 453 to 469
(``python -m benchmarks.cohort``, 2026-11-21).
"""

from __future__ import annotations

import ctypes
import os
import sys

LARGE_BYTES = 1 << 16
"""Blocks from this size on are mapped, and given back when they are freed."""

COMPILED_LAYERS = "64"
"""How many oneDNN keeps; a convolutional encoder has some tens of layers."""

_M_MMAP_THRESHOLD = -3


def keep_memory_flat() -> None:
    """Tell the libraries; call it before the first layer is computed, where oneDNN looks.

    What the user has set stays, and a C library that is not glibc decides for itself.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", COMPILED_LAYERS)
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
