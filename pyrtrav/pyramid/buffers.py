"""Memory for pixels that is used again: taking fresh pages costs half as much as decoding a tile into them.

It begins 16 bytes after a multiple of 32. Where libjpeg-turbo meets an address that is one it writes past the
processor's caches, and what is copied from there next comes from main memory: decoding and copying a tile of 256 px
takes an eighth longer.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPARE_BYTES = 16 << 20
"""Kept for later, of each size; sizes are powers of two."""

_LARGEST = 1 << 26
"""Larger arrays are not worth keeping."""

_ALIGN = 32


def empty(shape: tuple[int, ...], kind: str = "uint8") -> NDArray[Any]:
    """Return an array with undefined content, like ``numpy.empty`` for a shape without zeros; from any thread."""
    dtype, lend = _lender(shape, kind)
    return np.empty(shape, dtype) if lend is None else np.ndarray(shape, dtype, lend())


@lru_cache(1024)
def _lender(shape: tuple[int, ...], kind: str) -> tuple[np.dtype[Any], Callable[[], Any] | None]:
    """Return the type, and what lends the memory; None for large arrays."""
    dtype = np.dtype(kind)
    size: int = 1 << (prod(shape) * dtype.itemsize - 1).bit_length()
    return dtype, None if size > _LARGEST else _pool(size)


@lru_cache(64)
def _pool(size: int) -> Callable[[], Any]:
    """Return what lends memory of one size; the last array on it that goes gives it back."""
    spare: deque[tuple[NDArray[np.uint8], int]] = deque(maxlen=max(1, _SPARE_BYTES // size))  # drops the oldest

    class Loan(ctypes.c_ubyte * size):  # type: ignore[misc]
        def __del__(self) -> None:
            spare.append(self.memory)

    def lend() -> Any:
        try:
            memory = spare.pop()
        except IndexError:
            fresh = np.empty(size + _ALIGN, np.uint8)
            start = fresh.__array_interface__["data"][0]
            memory = fresh, start + (_ALIGN // 2 - start) % _ALIGN
        loan = Loan.from_address(memory[1])
        loan.memory = memory
        return loan

    return lend
