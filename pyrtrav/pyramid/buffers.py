"""Memory for pixels that is used again: taking fresh pages costs half as much as decoding a tile into them."""

from __future__ import annotations

from collections import deque
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_SPARE_BYTES = 16 << 20
"""Kept for later, of each size; sizes are powers of two."""

_LARGEST = 1 << 26
"""Larger arrays are not worth keeping."""

_spare: dict[int, deque[NDArray[np.uint8]]] = {}


class _Loan:
    """What arrays on lent memory hold on to; the last one gone gives the memory back."""

    __slots__ = ("__array_interface__", "_memory", "_spare")

    def __init__(self, memory: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._memory, self._spare = memory, _spare[memory.size]
        interface = memory.__array_interface__
        self.__array_interface__ = {
            "version": 3,
            "data": interface["data"],
            "shape": shape,
            "typestr": dtype.str,
        }

    def __del__(self) -> None:
        self._spare.append(self._memory)  # beyond its length a deque drops the oldest


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.uint8) -> NDArray[Any]:
    """Return an array with undefined content, like ``numpy.empty``; from any thread."""
    dtype = np.dtype(dtype)
    size = 1 << (prod(shape) * dtype.itemsize - 1).bit_length()
    if size > _LARGEST:
        return np.empty(shape, dtype)
    spare = _spare.get(size) or _spare.setdefault(size, deque(maxlen=max(1, _SPARE_BYTES // size)))
    try:
        memory = spare.pop()
    except IndexError:
        memory = np.empty(size, np.uint8)
    return np.asarray(_Loan(memory, shape, dtype))
