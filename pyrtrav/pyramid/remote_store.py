"""A zarr hierarchy behind a URL.

Metadata are read once. A shard is what it was when its index was read; that the image is still the one that
was opened is asked, beside every run of chunks, of the metadata at its root. Simplified: a chunk with a file of
its own that is rewritten while the metadata stay is not noticed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from threading import Lock

from pyrtrav.cost import Cost
from pyrtrav.errors import PyramidError
from pyrtrav.pyramid.remote import Answer, Range, Remote, Version
from pyrtrav.pyramid.remote_client import fetch_pool
from pyrtrav.pyramid.zarr_store import METADATA_BYTES, MISSING

ROOT_METADATA = ("zarr.json", ".zattrs", ".zgroup")
"""Any of them makes a URL a zarr hierarchy."""

_METADATA = {*ROOT_METADATA, ".zarray"}
# The end of a shard, with its size, is one request: most indexes are shorter than this.
_TAIL_BYTES = 16 << 10
_KEPT = 1024


class RemoteStore:
    """A zarr hierarchy behind a URL (a ``Store``)."""

    def __init__(self, url: str, cost: Cost) -> None:
        self._remote, self._lock = Remote(url.rstrip("/"), cost), Lock()
        self._metadata: dict[str, Answer | None] = {}
        self._tails: OrderedDict[str, Future[Answer]] = OrderedDict()
        self._versions: OrderedDict[str, Version] = OrderedDict()
        try:
            # Format 3 has the first, format 2 the others; an OME-Zarr image says in .zattrs what it is.
            root = next((key for key in ROOT_METADATA if self._read_metadata(key)), None)
        except OSError as error:
            raise PyramidError(f"{url}: {error}") from error
        if root is None:
            raise PyramidError(f"{url}: no zarr metadata there") from FileNotFoundError(url)
        self._root = root

    @property
    def identity(self) -> tuple[Hashable, ...]:
        answer = self._metadata[self._root]
        assert answer is not None  # found when it was opened
        return *answer.version.identity, answer.data

    def prepare(self, names: Iterable[str]) -> None:
        """Read the metadata of arrays together."""
        ending = "zarr.json" if self._root == "zarr.json" else ".zarray"
        list(fetch_pool().map(self._read_metadata, [f"{name}/{ending}" for name in names]))

    def size(self, key: str) -> int | None:
        try:
            return self._tail(key).version.size
        except MISSING:
            return None

    def read(self, key: str, start: int, length: int) -> bytes:
        if key.rpartition("/")[2] in _METADATA:
            answer = self._read_metadata(key)
            if answer is None:
                raise FileNotFoundError(key)
            return answer.data[start : start + length]
        if length <= 0:
            return b""
        tail = self._known_tail(key)
        if tail is not None and start >= tail.start:
            return tail.data[start - tail.start : start - tail.start + length]
        with self._lock:
            version = self._versions.get(key)
        answer = self._remote.take((key, start, length)) or self._remote.get(key, start, length, version)
        self._keep_version(key, answer.version)
        return answer.data

    def prefetch(self, lookups: Iterable[Callable[[], Range | None]]) -> None:
        """Fetch chunks together; each is looked up first, which may take reading the index of its shard.

        Raises:
            ImageChangedError: the image is not the one that was opened.
        """
        waiting = list(lookups)
        if not waiting:
            return
        root = self._metadata[self._root]
        assert root is not None  # found when it was opened
        same = fetch_pool().submit(self._remote.get, self._root, 0, METADATA_BYTES, root.version)
        found = [span for span in fetch_pool().map(_looked_up, waiting) if span is not None and not self._has(span)]
        with self._lock:
            versions = dict(self._versions)
        self._remote.prefetch(found, versions)
        try:
            same.result()
        except OSError as error:
            if isinstance(error, PyramidError):
                raise
            raise PyramidError(f"{self._remote.url}: {error}") from error

    def close(self) -> None:
        self._remote.close()

    def _read_metadata(self, key: str) -> Answer | None:
        if key not in self._metadata:
            above = "zarr.json" if key.endswith("/zarr.json") else key
            # No hierarchy mixes the formats.
            absent = above != key and self._metadata.get(above, True) is None
            self._metadata[key] = None if absent else self._fetched(key)
        return self._metadata[key]

    def _fetched(self, key: str) -> Answer | None:
        try:
            return self._remote.get(key, 0, METADATA_BYTES + 1)
        except MISSING:
            return None
        except PermissionError:
            # So does S3 say that a file is missing to who may not list the bucket.
            if any(self._metadata.values()):
                return None
            raise

    def _has(self, span: Range) -> bool:
        tail = self._known_tail(span[0])
        return tail is not None and span[1] >= tail.start

    def _known_tail(self, key: str) -> Answer | None:
        with self._lock:
            tail = self._tails.get(key)
        return tail.result() if tail is not None else None

    def _tail(self, key: str) -> Answer:
        """The end of a file; asked for once, by the first of several threads."""
        with self._lock:
            tail = self._tails.get(key)
            mine = tail is None
            if tail is None:
                tail = self._tails[key] = Future()
                if len(self._tails) > _KEPT:
                    self._tails.popitem(last=False)
        if mine:
            try:
                answer = self._remote.get(key, -1, _TAIL_BYTES)
                self._keep_version(key, answer.version)
                tail.set_result(answer)
            except Exception as error:  # noqa: BLE001 (whoever waits is told)
                if not isinstance(error, MISSING):
                    with self._lock:
                        self._tails.pop(key, None)
                tail.set_exception(error)
        return tail.result()

    def _keep_version(self, key: str, version: Version) -> None:
        with self._lock:
            self._versions.setdefault(key, version)
            if len(self._versions) > _KEPT:
                self._versions.popitem(last=False)


def _looked_up(lookup: Callable[[], Range | None]) -> Range | None:
    try:
        return lookup()
    except Exception:  # noqa: BLE001 (whoever reads the chunk is told)
        return None
