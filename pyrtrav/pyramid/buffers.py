"""Memory for pixels that is used again: taking fresh pages costs half as much as decoding a tile into them.

It begins 16 bytes after a multiple of 32. Where libjpeg-turbo meets an address that is one it writes past the
processor's caches, and what is copied from there next comes from main memory: decoding and copying a tile of 256 px
takes an eighth longer.
"""

from __future__ import annotations

from collections import deque
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

_Memory = tuple[NDArray[np.uint8], int]
"""With the address where its use begins."""

_spare: dict[int, deque[_Memory]] = {}


class _Loan:
    """What arrays on lent memory hold on to; the last one gone gives the memory back."""

    __slots__ = ("__array_interface__", "_memory", "_spare")

    def __init__(self, memory: _Memory, shape: tuple[int, ...], typestr: str, spare: deque[_Memory]) -> None:
        self._memory, self._spare = memory, spare
        self.__array_interface__ = {"version": 3, "data": (memory[1], False), "shape": shape, "typestr": typestr}

    def __del__(self) -> None:
        self._spare.append(self._memory)  # beyond its length a deque drops the oldest


@lru_cache(1024)
def _room(shape: tuple[int, ...], typestr: str) -> int:
    """The next power of two of bytes."""
    return 1 << (prod(shape) * int(typestr[2:]) - 1).bit_length()


def empty(shape: tuple[int, ...], typestr: str = "|u1") -> NDArray[Any]:
    """Return an array with undefined content, like ``numpy.empty``; from any thread.

    Args:
        shape: of at least one element.
        typestr: as numpy's array interface spells types; its last digits are the bytes of an element.
    """
    size = _room(shape, typestr)
    if size > _LARGEST:
        return np.empty(shape, typestr)
    spare = _spare.get(size)
    if spare is None:
        spare = _spare.setdefault(size, deque(maxlen=max(1, _SPARE_BYTES // size)))
    try:
        memory = spare.pop()
    except IndexError:
        fresh = np.empty(size + _ALIGN, np.uint8)
        start = fresh.__array_interface__["data"][0]
        memory = fresh, start + (_ALIGN // 2 - start) % _ALIGN
    return np.asarray(_Loan(memory, shape, typestr, spare))
