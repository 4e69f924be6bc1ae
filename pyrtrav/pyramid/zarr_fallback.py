"""Zarr arrays that ``zarr_array`` refuses, read by zarr-python: filters, rarer codecs, sharding in sharding.

Chunk by chunk, one at a time, with the same answers: None for a chunk that is not stored, and no more memory
than a chunk of the declared size explains. zarr-python is imported when the first such array is opened.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from math import prod
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import UnsupportedFormatError
from pyrtrav.pyramid.tiles import MAX_TILE_BYTES
from pyrtrav.pyramid.zarr_array import DECODERS, Chunk, checked_sizes, checked_type, most_stored_bytes
from pyrtrav.pyramid.zarr_store import MISSING, Store, read_json

# A pickle runs whatever code the file holds.
_FORBIDDEN = {"pickle"}


class FallbackArray:
    """One array, read by chunk; see ``ZarrArray`` for what the attributes and methods are.

    Raises:
        UnsupportedFormatError: zarr-python does not read it either; names the codecs.
    """

    def __init__(self, path: str, store: Store, name: str) -> None:
        self.path, self.name, self._lock = path, name, Lock()
        said = read_json(store, f"{name}/zarr.json") or read_json(store, f"{name}/.zarray") or {}
        codecs = list(_codecs(said))
        if forbidden := _FORBIDDEN.intersection(codecs):
            raise UnsupportedFormatError(
                f"{path}: array {name!r} is stored by {', '.join(forbidden)}, which may run any program; it is not read"
            )
        kept, peeled = _peeled(said)
        self._source = _source_type()(store, [DECODERS[codec] for codec in peeled])
        try:
            self._array = self._opened(kept)
            outer = self._array.shards or self._array.chunks
            if self._array.shards is not None:
                other = 1 if self._array.fill_value == 0 else 0
                self._with_other_fill = self._opened({**kept, "fill_value": self._array.dtype.type(other).item()})
        except Exception as error:  # whatever zarr-python and its codecs say
            raise UnsupportedFormatError(
                f"{path}: array {name!r} is stored by {', '.join(codecs)}, which neither pyrtrav nor zarr-python "
                f"reads ({type(error).__name__}: {str(error)[:200]}); convert it to a common codec such as zstd"
            ) from error
        self.shape, self.chunks = checked_sizes(path, name, self._array.shape, self._array.chunks)
        self.dtype = checked_type(path, name, np.dtype(self._array.dtype)).newbyteorder("=")
        self.fill_value = None if said.get("fill_value") is None else self._array.fill_value.item()
        self.chunk_bytes = self.scratch_bytes = prod(self.chunks) * self.dtype.itemsize
        self._source.most = min(most_stored_bytes(prod(outer) * self.dtype.itemsize), MAX_TILE_BYTES)

    def _opened(self, said: Mapping[str, Any]) -> Any:
        import zarr
        from zarr.storage import StorePath

        # Said at every step, of codecs that are no part of the specification; who reads a file cannot change it.
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        return zarr.Array.from_dict(StorePath(self._source, self.name), dict(said))

    def read_chunk(self, at: Sequence[int], scratch: NDArray[np.uint8] | None = None) -> Chunk | None:
        """Return the chunk at a place of the chunk grid; None where none is stored."""
        corner = [place * size for place, size in zip(at, self.chunks, strict=True)]
        inside = zip(corner, self.chunks, self.shape, strict=True)
        where = tuple(slice(start, min(start + size, whole)) for start, size, whole in inside)
        with self._lock:
            self._source.bytes_read, self._source.found = 0, False
            part = np.asarray(self._array[where])
            if not self._source.found or self._is_filled(part, where):
                return None
            stored = self._source.bytes_read
        values = np.zeros(self.chunks, self.dtype)
        values[tuple(slice(size) for size in part.shape)] = part
        return Chunk(values, stored)

    def _is_filled(self, part: NDArray[Any], where: tuple[slice, ...]) -> bool:
        """Whether a shard lacks the chunk: its values are the fill value, and another one if that is another."""
        if self._array.shards is None:
            return False
        fill = np.full_like(part, self._array.fill_value)
        if not np.array_equal(part, fill, equal_nan=self.dtype.kind == "f"):
            return False
        return bool((np.asarray(self._with_other_fill[where]) != part).all())


def _codecs(said: Any) -> Iterator[str]:
    """The names of all codecs in an array's metadata, within sharding too."""
    if isinstance(said, str):
        yield said.removeprefix("numcodecs.")
    elif isinstance(said, list):
        for codec in said:
            yield from _codecs(codec)
    elif isinstance(said, dict):
        yield from _codecs(said.get("id", said.get("name")))
        inner = {**said, **(said.get("configuration") or {})}
        for key in ("filters", "compressor", "codecs", "index_codecs"):
            yield from _codecs(inner.get(key))


def _peeled(said: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Metadata without the compression that wraps whole chunks, and its codecs as they were applied.

    Our decoders undo it within bounds; zarr-python's would take as much memory as a damaged chunk wants.
    """
    kept = dict(said)
    peeled: list[str] = []
    if "codecs" in kept:
        kept["codecs"] = codecs = list(kept["codecs"])
        while len(codecs) > 1 and (last := next(_codecs(codecs[-1]))) in DECODERS:
            codecs.pop()
            peeled.insert(0, last)
    elif (compressor := next(_codecs(kept.get("compressor")), None)) in DECODERS:
        kept["compressor"] = None
        peeled.append(str(compressor))
    return kept, peeled


@cache
def _source_type() -> Callable[..., Any]:
    """One of our stores as a store of zarr-python."""
    from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
    from zarr.abc.store import Store as ZarrStore
    from zarr.core.buffer import default_buffer_prototype

    class Source(ZarrStore):  # type: ignore[misc, unused-ignore]
        """Reads, counts what it read, and refuses to read too much."""

        supports_writes = supports_deletes = supports_listing = supports_partial_writes = False

        def __init__(self, store: Store, decoders: Sequence[Callable[..., Any]]) -> None:
            super().__init__(read_only=True)
            self._store, self._decoders = store, decoders
            self.most, self.bytes_read, self.found = 0, 0, False
            self._decoded: tuple[str, bytes] = "", b""

        def __eq__(self, other: object) -> bool:
            return self is other

        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
            try:
                if self._decoders:
                    whole = self._whole(key)
                    start, length = self._bounds(byte_range, lambda: len(whole))
                    data = whole[start : start + length]
                else:
                    data = self._stored(key, *self._bounds(byte_range, lambda: self._store.size(key) or 0))
            except MISSING:
                return None
            self.found = True
            return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

        def _bounds(self, wanted: Any, size: Callable[[], int]) -> tuple[int, int]:
            """First byte and length of what zarr-python asks for."""
            if isinstance(wanted, RangeByteRequest):
                return wanted.start, wanted.end - wanted.start
            if isinstance(wanted, SuffixByteRequest):
                start = max(0, size() - wanted.suffix)
                return start, wanted.suffix
            return wanted.offset if isinstance(wanted, OffsetByteRequest) else 0, self.most + 1

        def _whole(self, key: str) -> bytes:
            """A file without its compression; the last one is kept, for of a shard many parts are asked for."""
            if self._decoded[0] != key:
                data: Any = self._stored(key, 0, self.most + 1)
                for decoder in reversed(self._decoders):
                    data = decoder(data, out=self.most)
                self._decoded = key, bytes(data)
            return self._decoded[1]

        def _stored(self, key: str, start: int, length: int) -> bytes:
            data = self._store.read(key, start, min(length, self.most + 1))
            if len(data) > self.most:
                raise ValueError(f"{key}: more stored bytes than such a chunk can take ({self.most:,})")
            self.bytes_read += len(data)
            return data

        async def get_partial_values(self, prototype: Any, key_ranges: Any) -> list[Any]:
            return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

        async def exists(self, key: str) -> bool:
            return self._store.size(key) is not None

        async def _refuse(self, *args: Any, **options: Any) -> Any:
            raise NotImplementedError("is only read")

        set = delete = set_partial_values = _refuse

        async def list(self) -> Any:
            return
            yield

        def list_prefix(self, prefix: str) -> Any:
            return self.list()

        def list_dir(self, prefix: str) -> Any:
            return self.list()

    return Source
