"""Zarr arrays, formats 2 and 3, chunk by chunk.

Written here rather than taken from zarr-python for four reasons: a missing chunk must be told from a black
one, two threads must decode at once (its event loop does not let them), a damaged header must not decide how
much memory is taken, and it is slower. Simplified: no filters but transposition, and no sharding within
sharding; ``zarr_fallback`` reads those.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, UnsupportedFormatError
from pyrtrav.pyramid.zarr_store import MISSING, Store, read_json


def _blosc(data: bytes, out: Any) -> Any:
    # The library believes this number and reads past the end of a chunk that was cut short.
    if len(data) < 16 or int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError(f"the chunk of {len(data)} bytes is not as long as its header says")
    return imagecodecs.blosc_decode(data, out=out)


DECODERS: dict[str, Callable[..., Any]] = {
    "blosc": _blosc,
    "zstd": imagecodecs.zstd_decode,
    "gzip": imagecodecs.gzip_decode,
    "zlib": imagecodecs.zlib_decode,
    "lz4": lambda data, out: imagecodecs.lz4_decode(data, header=True, out=out),
    "bz2": imagecodecs.bz2_decode,
    "lzma": imagecodecs.lzma_decode,
}
"""Every one of them takes `out`, a buffer or its size, and never gives more."""

# Room behind a chunk: for its checksum, and for finding that it holds more than it should.
_SLACK = 4
# Both numbers of a chunk that a shard does not hold.
_ABSENT = 2**64 - 1
_INDEXES_KEPT = 64


class Chunk(NamedTuple):
    """A decoded chunk and its stored bytes."""

    values: NDArray[Any]
    stored_bytes: int


class Span(NamedTuple):
    """Where a chunk is stored: file, first byte, and its bytes, or the most that they may be."""

    key: str
    start: int
    length: int


def most_stored_bytes(chunk_bytes: int) -> int:
    """More than this is no chunk: no codec doubles what it is given."""
    return 2 * chunk_bytes + (1 << 20)


class _Layout(NamedTuple):
    """How an array's metadata says that chunks are stored."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    """What is decoded at once: the inner chunks, where there are shards."""
    shards: tuple[int, ...] | None
    dtype: np.dtype[Any]
    fill_value: object
    order: tuple[int, ...]
    """The stored order of the axes."""
    codecs: tuple[str, ...]
    """From bytes to bytes, as they were applied."""
    index_first: bool
    index_checked: bool
    key: Callable[[Sequence[int]], str]


class ZarrArray:
    """One array, read by chunk.

    ``locate``, ``Store.read`` and ``decode`` are the three steps of ``read_chunk``; who wants the bytes of many
    chunks at once takes them one by one.

    Raises:
        FileNotFoundError: there is no such array.
        UnsupportedFormatError: it is stored in a way that is not read here.
        CorruptImageError: its metadata are damaged.
    """

    def __init__(self, path: str, store: Store, name: str) -> None:
        self.path, self._store, self.name = path, store, name
        self._indexes: OrderedDict[str, NDArray[np.uint64]] = OrderedDict()
        self._lock = Lock()
        try:
            self._layout = layout = _read_layout(path, store, name)
        except (UnsupportedFormatError, CorruptImageError, FileNotFoundError):
            raise
        except Exception as error:  # whatever damaged metadata lead to
            raise CorruptImageError(path, f"array {name!r}: {type(error).__name__}: {error}") from error
        self.shape, self.chunks, self.dtype = layout.shape, layout.chunks, layout.dtype.newbyteorder("=")
        self.fill_value = layout.fill_value
        self.chunk_bytes = math.prod(self.chunks) * self.dtype.itemsize
        self._stored_shape = [layout.chunks[axis] for axis in layout.order]
        self._to_axes = None if list(layout.order) == sorted(layout.order) else np.argsort(layout.order)
        self._per_shard = [n // chunk for n, chunk in zip(layout.shards or (), layout.chunks, strict=False)]
        self._most = most_stored_bytes(self.chunk_bytes)
        self._steps = list(enumerate(layout.codecs))[::-1]
        self._last_step = min((step for step, codec in self._steps if codec != "crc32c"), default=0)

    def read_chunk(self, at: Sequence[int], scratch: NDArray[np.uint8] | None = None) -> Chunk | None:
        """Return the chunk at a place of the chunk grid; None where none is stored.

        Args:
            at: its place along every axis.
            scratch: a buffer of ``scratch_bytes`` for the values, which are lost when it is used again.
        """
        try:
            span = self.locate(at)
            if span is None:
                return None
            data = self._store.read(*span)
        except MISSING:
            return None
        if self._layout.shards is not None and len(data) != span.length:
            raise ValueError(f"the shard ends before its chunk of {span.length} bytes at {span.start}")
        return Chunk(self.decode(data, scratch), len(data))

    @property
    def scratch_bytes(self) -> int:
        return self.chunk_bytes + _SLACK

    def locate(self, at: Sequence[int]) -> Span | None:
        """Return where a chunk is stored; None where its shard has none.

        Raises:
            FileNotFoundError: there is no such shard.
        """
        if self._layout.shards is None:
            return Span(f"{self.name}/{self._layout.key(at)}", 0, self._most + 1)
        places = [divmod(place, count) for place, count in zip(at, self._per_shard, strict=True)]
        key = f"{self.name}/{self._layout.key([shard for shard, _ in places])}"
        start, length = self._index(key)[tuple(inner for _, inner in places)].tolist()
        if start == length == _ABSENT:
            return None
        self._check_size(length)
        return Span(key, start, length)

    def _check_size(self, size: int) -> None:
        if size > self._most:
            raise ValueError(f"{size:,} stored bytes are more than such a chunk can take")

    def decode(self, data: bytes, scratch: NDArray[np.uint8] | None = None) -> NDArray[Any]:
        """Return the values of a chunk from its stored bytes."""
        self._check_size(len(data))
        decoded: Any = data
        for step, codec in self._steps:
            if codec == "crc32c":
                decoded = _checked(decoded)
            elif step == self._last_step and scratch is not None:
                decoded = DECODERS[codec](decoded, out=scratch[: self.scratch_bytes])
            else:
                decoded = DECODERS[codec](decoded, out=np.empty(self.scratch_bytes, np.uint8))
        if len(decoded) != self.chunk_bytes:
            raise ValueError(f"the chunk holds {len(decoded)} bytes, but {self.chunk_bytes} are declared")
        values = np.frombuffer(decoded, self._layout.dtype).reshape(self._stored_shape)
        if self._to_axes is not None:
            values = values.transpose(self._to_axes)
        return values.astype(self.dtype, copy=False)

    def _index(self, key: str) -> NDArray[np.uint64]:
        """The (start, length) of every chunk of a shard."""
        with self._lock:
            found = self._indexes.get(key)
            if found is not None:
                self._indexes.move_to_end(key)
                return found
        length = 16 * math.prod(self._per_shard) + 4 * self._layout.index_checked
        start = 0 if self._layout.index_first else max(0, (self._store.size(key) or 0) - length)
        data: Any = self._store.read(key, start, length)
        if len(data) != length:
            raise ValueError(f"the shard of {len(data)} bytes is shorter than its index")
        if self._layout.index_checked:
            data = _checked(data)
        index = np.frombuffer(data, "<u8").reshape(*self._per_shard, 2)
        with self._lock:
            self._indexes[key] = index
            if len(self._indexes) > _INDEXES_KEPT:
                self._indexes.popitem(last=False)
        return index


def _checked(data: Any) -> Any:
    """Bytes without the CRC-32C that ends them."""
    import google_crc32c  # costs as much as all of ours, and few images need it

    if google_crc32c.value(bytes(data[:-4])) != int.from_bytes(bytes(data[-4:]), "little"):
        raise ValueError("its checksum (CRC-32C) does not match")
    return data[:-4]


# Metadata.


def _read_layout(path: str, store: Store, name: str) -> _Layout:
    said = read_json(store, f"{name}/zarr.json")
    if said is not None:
        return _layout_3(path, name, said)
    said = read_json(store, f"{name}/.zarray")
    if said is None:
        raise FileNotFoundError(f"{path}: its array {name!r} is missing")
    return _layout_2(path, name, said)


def _layout_2(path: str, name: str, said: Mapping[str, Any]) -> _Layout:
    if said.get("filters"):
        raise UnsupportedFormatError(f"{path}: array {name!r} has filters, which are not supported")
    shape, chunks = checked_sizes(path, name, said["shape"], said["chunks"])
    separator = said.get("dimension_separator", ".")
    compressor = said.get("compressor")
    order = tuple(range(len(shape)))
    return _Layout(
        shape,
        chunks,
        None,
        _dtype(path, name, said["dtype"]),
        said.get("fill_value"),
        order if said.get("order", "C") == "C" else order[::-1],
        () if compressor is None else (_codec(path, name, compressor["id"]),),
        False,
        False,
        lambda at: separator.join(map(str, at)),
    )


def _layout_3(path: str, name: str, said: Mapping[str, Any]) -> _Layout:
    grid, codecs = said["chunk_grid"], list(said["codecs"])
    if said.get("node_type") != "array" or grid["name"] != "regular" or said.get("storage_transformers"):
        raise UnsupportedFormatError(f"{path}: {name!r} is no array of a regular grid")
    shape, outer = checked_sizes(path, name, said["shape"], grid["configuration"]["chunk_shape"])
    shards, chunks, index_first, index_checked = None, outer, False, False
    if codecs[0]["name"] == "sharding_indexed":
        if len(codecs) > 1:
            raise UnsupportedFormatError(f"{path}: array {name!r} compresses whole shards, which is not supported")
        sharding = codecs[0]["configuration"]
        shards, (_, chunks) = outer, checked_sizes(path, name, shape, sharding["chunk_shape"])
        if any(shard % chunk for shard, chunk in zip(shards, chunks, strict=True)):
            raise CorruptImageError(path, f"array {name!r}: shards {shards} hold no whole chunks of {chunks}")
        index_codecs = [codec["name"] for codec in sharding.get("index_codecs", [{"name": "bytes"}])]
        if index_codecs[0] != "bytes" or index_codecs[1:] not in ([], ["crc32c"]):
            raise UnsupportedFormatError(f"{path}: array {name!r} has a compressed shard index")
        index_first, index_checked = sharding.get("index_location", "end") == "start", len(index_codecs) > 1
        codecs = list(sharding["codecs"])
    order = tuple(range(len(shape)))
    if codecs[0]["name"] == "transpose":
        order = tuple(codecs.pop(0)["configuration"]["order"])
    to_bytes = codecs.pop(0)
    if sorted(order) != list(range(len(shape))) or to_bytes["name"] != "bytes":
        raise UnsupportedFormatError(f"{path}: array {name!r} is stored by codecs that are not supported")
    endian = to_bytes.get("configuration", {}).get("endian", "little")
    return _Layout(
        shape,
        chunks,
        shards,
        _dtype(path, name, said["data_type"]).newbyteorder(">" if endian == "big" else "<"),
        said.get("fill_value"),
        order,
        tuple(
            "crc32c" if codec["name"] == "crc32c" else _codec(path, name, codec["name"].removeprefix("numcodecs."))
            for codec in codecs
        ),
        index_first,
        index_checked,
        _key_encoding(said.get("chunk_key_encoding", {"name": "default"})),
    )


def _key_encoding(said: Mapping[str, Any]) -> Callable[[Sequence[int]], str]:
    separator = said.get("configuration", {}).get("separator", "/" if said["name"] == "default" else ".")
    prefix = ["c"] if said["name"] == "default" else []
    return lambda at: separator.join([*prefix, *map(str, at)])


def checked_sizes(path: str, name: str, shape: Any, chunks: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of an array and of its chunks, as many sizes from 1 on."""
    sizes = tuple(int(size) for size in shape), tuple(int(size) for size in chunks)
    if len(sizes[0]) != len(sizes[1]) or min(*sizes[0], *sizes[1], 1) < 1:
        raise CorruptImageError(path, f"array {name!r}: impossible shape {shape} with chunks {chunks}")
    return sizes


def _dtype(path: str, name: str, said: Any) -> np.dtype[Any]:
    if not isinstance(said, str):
        raise UnsupportedFormatError(f"{path}: array {name!r} is of type {said}, which is no image")
    return checked_type(path, name, np.dtype(said))


def checked_type(path: str, name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of an array's values, which must be numbers."""
    if dtype.kind not in "buif":
        raise UnsupportedFormatError(f"{path}: array {name!r} is of type {dtype}, which is no image")
    return dtype


def _codec(path: str, name: str, codec: str) -> str:
    if codec not in DECODERS:
        raise UnsupportedFormatError(f"{path}: array {name!r} is compressed by {codec!r}, which is not supported")
    return codec
