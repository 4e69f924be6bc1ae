"""Files behind URLs, read by byte range over HTTP(S), S3 and Google Cloud Storage by obstore.

A file is what it was when its first byte was read: every later request carries its ETag as a condition, and
what each answer says about the file is compared. Which credentials, region and endpoint are used is obstore's
matter: the environment (``AWS_...``, ``GOOGLE_...``). Simplified: a file whose server tells neither ETag nor
modification time is known by its size alone; what obstore asks for again by itself counts as one request.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from threading import Lock
from typing import Any, NamedTuple

from pyrtrav.cost import Cost
from pyrtrav.errors import ImageChangedError, PyramidError
from pyrtrav.pyramid.remote_client import (
    TRIES,
    begin,
    connect,
    fetch_pool,
    fetched,
    plain_error,
    timeout_seconds,
)

HEAD_BYTES = 64 << 10
"""Read when a file is opened: enough to tell what it is, and often its first directory."""

# Ranges as close as this are one request: about what a connection carries while a request travels.
_GAP_BYTES = 32 << 10
# A joined request is no longer than this, so that several connections share the work.
_JOINED_BYTES = 2 << 20
# Bytes that were asked for ahead and not read yet; what is beyond is asked for again.
_AHEAD_BYTES = 256 << 20

Range = tuple[str, int, int]
"""Key below the URL, first byte, and bytes at most."""


class Version(NamedTuple):
    """What tells a file from a later one under its name."""

    etag: str | None
    modified: float
    """Seconds since 1970; 0 where the server does not say."""
    size: int

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """The date counts only where there is no ETag: the copies of a file on several servers differ in it."""
        return self.etag or self.modified, self.size


class Answer(NamedTuple):
    data: bytes
    start: int
    version: Version


class Remote:
    """What lies at and below one URL. Safe from any number of threads, but not in a forked child."""

    def __init__(self, url: str, cost: Cost) -> None:
        self.url, self._cost, self._lock = url, cost, Lock()
        begin(url)
        self._store = connect(url)
        self._ahead: OrderedDict[Range, tuple[Future[Answer], int]] = OrderedDict()
        self._ahead_bytes = 0

    def get(self, key: str, start: int, length: int, expected: Version | None = None) -> Answer:
        """Return the bytes of a range, fewer where the file ends; counted from its end where ``start`` is negative.

        Raises:
            OSError: they cannot be had; FileNotFoundError, PermissionError and NoRangesError say why.
            ImageChangedError: the file is not the ``expected`` one.
        """
        begin(self.url)
        options: dict[str, Any] = {"range": {"suffix": length} if start < 0 else (start, start + length)}
        if expected is not None and expected.etag and not expected.etag.startswith("W/"):
            options["if_match"] = expected.etag
        answer = self._tried(key, options)
        if expected is not None and answer.version.identity != expected.identity:
            raise ImageChangedError(self.url)
        return answer

    def _tried(self, key: str, options: dict[str, Any]) -> Answer:
        """obstore tries again what never began; what broke off is tried again here."""
        began = time.monotonic()
        for tries_left in reversed(range(TRIES)):
            with self._lock:
                self._cost.requests += 1
            try:
                result = fetched(self._store, key, options)
            except Exception as error:  # obstore's errors have no base of their own
                raise self._said(error) from error
            try:
                data = bytes(result.bytes())
            except Exception as error:
                if not tries_left or time.monotonic() - began > timeout_seconds():
                    raise self._said(error) from error
                continue
            with self._lock:
                self._cost.bytes_fetched += len(data)
            meta, (start, stop) = result.meta, result.range
            if len(data) == stop - start:
                return Answer(data, start, Version(meta["e_tag"], meta["last_modified"].timestamp(), meta["size"]))
        raise ConnectionError(f"the server's answers are shorter than they say, {TRIES} times")

    def _said(self, error: Exception) -> Exception:
        is_changed = type(error).__name__ == "PreconditionError"
        return ImageChangedError(self.url) if is_changed else plain_error(error)

    # Reading ahead.

    def prefetch(self, wanted: Iterable[Range], versions: dict[str, Version]) -> None:
        """Ask for ranges together; ``take`` gives each once. Close ones of a file are joined."""
        begin(self.url)
        with self._lock:
            new = [span for span in dict.fromkeys(wanted) if span not in self._ahead]
        for key, start, stop, spans in _joined(new):
            answer = fetch_pool().submit(self.get, key, start, stop - start, versions.get(key))
            with self._lock:
                for span in spans:
                    if span not in self._ahead:  # another thread may have asked since
                        self._ahead_bytes += span[2]
                    self._ahead[span] = answer, span[2]
                while self._ahead_bytes > _AHEAD_BYTES:
                    self._ahead_bytes -= self._ahead.popitem(last=False)[1][1]

    def take(self, span: Range) -> Answer | None:
        """Return what was asked for ahead, or None; raises what ``get`` does."""
        with self._lock:
            found = self._ahead.pop(span, None)
            if found is None:
                return None
            self._ahead_bytes -= found[1]
        try:
            data, first, version = found[0].result()
        except CancelledError:  # another thread closed the image
            return None
        return Answer(data[span[1] - first : span[1] - first + span[2]], span[1], version)

    def close(self) -> None:
        with self._lock:
            for answer, _ in self._ahead.values():
                answer.cancel()
            self._ahead.clear()
            self._ahead_bytes = 0


class RemoteFile:
    """One file behind a URL (a ``Source``)."""

    def __init__(self, url: str, cost: Cost) -> None:
        self._remote = Remote(url, cost)
        self._head, _, self.version = self._first(url)
        self._known = {"": self.version}
        self.size = self.version.size

    def _first(self, url: str) -> Answer:
        try:
            return self._remote.get("", 0, HEAD_BYTES)
        except OSError as error:
            raise PyramidError(f"{url}: {error}") from error

    @property
    def identity(self) -> tuple[Hashable, ...]:
        return self.version.identity

    def read(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        if offset + length <= len(self._head):
            return self._head[offset : offset + length]
        answer = self._remote.take(("", offset, length))
        return (answer or self._remote.get("", offset, length, self.version)).data

    def prefetch(self, spans: Iterable[tuple[int, int]]) -> None:
        there = ((offset, length) for offset, length in spans if length and offset + length <= self.size)
        self._remote.prefetch((("", *span) for span in there if sum(span) > len(self._head)), self._known)

    def close(self) -> None:
        self._remote.close()


def _joined(spans: Iterable[Range]) -> Iterator[tuple[str, int, int, list[Range]]]:
    """(key, start, stop, spans) of the requests that together hold the spans."""
    group: list[Range] = []
    key, first, last = "", 0, 0
    for span in sorted(spans):
        start, stop = span[1], span[1] + span[2]
        apart = span[0] != key or start - last > _GAP_BYTES or max(stop, last) - first > _JOINED_BYTES
        if group and apart:
            yield key, first, last, group
            group = []
        if not group:
            key, first, last = span[0], start, stop
        last = max(last, stop)
        group.append(span)
    if group:
        yield key, first, last, group
