"""Memory for pixels that is used again: taking fresh pages costs half as much as decoding a tile into them."""

from __future__ import annotations

from collections import deque
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPARE_BYTES = 16 << 20
"""Kept for later, of each size; sizes are powers of two."""

_LARGEST = 1 << 26
"""Larger arrays are not worth keeping."""

_Memory = tuple[NDArray[np.uint8], int]
"""With its address."""

_spare: dict[int, deque[_Memory]] = {}


class _Loan:
    """What arrays on lent memory hold on to; the last one gone gives the memory back."""

    __slots__ = ("__array_interface__", "_memory", "_spare")

    def __init__(self, memory: _Memory, shape: tuple[int, ...], typestr: str, spare: deque[_Memory]) -> None:
        self._memory, self._spare = memory, spare
        self.__array_interface__ = {"version": 3, "data": (memory[1], False), "shape": shape, "typestr": typestr}

    def __del__(self) -> None:
        self._spare.append(self._memory)  # beyond its length a deque drops the oldest


def empty(shape: tuple[int, ...], typestr: str = "|u1") -> NDArray[Any]:
    """Return an array with undefined content, like ``numpy.empty``; from any thread.

    Args:
        shape: of at least one element.
        typestr: as numpy's array interface spells types; its last digits are the bytes of an element.
    """
    size = 1 << (prod(shape) * int(typestr[2:]) - 1).bit_length()
    if size > _LARGEST:
        return np.empty(shape, typestr)
    spare = _spare.get(size)
    if spare is None:
        spare = _spare.setdefault(size, deque(maxlen=max(1, _SPARE_BYTES // size)))
    try:
        memory = spare.pop()
    except IndexError:
        fresh = np.empty(size, np.uint8)
        memory = fresh, fresh.__array_interface__["data"][0]
    return np.asarray(_Loan(memory, shape, typestr, spare))
