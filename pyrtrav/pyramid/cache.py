"""One cache of decoded tiles for the process, bounded in bytes, least recently used out first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Hashable
from threading import Lock
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class TileCache(Generic[T]):
    """Decoded tiles by key. Safe from any number of threads; the lock is held for the bookkeeping only."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._tiles: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._tiles)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tiles

    def get(self, key: Hashable) -> T | None:
        """Return the tile and mark it as used now, or None."""
        if key not in self._tiles:
            return None
        with self._lock:
            kept = self._tiles.get(key)
            if kept is None:
                return None
            self._tiles.move_to_end(key)
            return kept[0]

    def put(self, key: Hashable, tile: T) -> None:
        """Keep the tile, dropping the least recently used ones; a tile above the bound is not kept."""
        size = tile.nbytes
        if size > self.max_bytes:
            return
        with self._lock:
            old = self._tiles.pop(key, None)
            self._tiles[key] = tile, size
            self.nbytes += size if old is None else size - old[1]
            while self.nbytes > self.max_bytes:
                _, dropped = self._tiles.popitem(last=False)
                self.nbytes -= dropped[1]

    def drop(self, tokens: Container[Hashable]) -> None:
        """Forget the tiles of some images, by the token with which their keys begin."""
        with self._lock:
            for key in [key for key in self._tiles if isinstance(key, tuple) and key[0] in tokens]:
                self.nbytes -= self._tiles.pop(key)[1]

    def clear(self) -> None:
        with self._lock:
            self._tiles.clear()
            self.nbytes = 0

    def after_fork(self) -> None:
        """In a forked child: the lock may have been held by a thread that the child does not have."""
        self._lock = Lock()
