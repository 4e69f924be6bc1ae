"""Zarr arrays, formats 2 and 3, chunk by chunk, from a folder or a zip file.

Written here rather than taken from zarr-python for three reasons: a missing chunk must be told from a black
one, two threads must decode at once (its event loop does not let them), and a damaged header must not decide
how much memory is taken. Simplified: no filters but transposition, and no sharding within sharding.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple, Protocol

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, UnsupportedFormatError
from pyrtrav.pyramid.tiles import MAX_TILE_BYTES


def _blosc(data: bytes, out: int) -> Any:
    # The library believes this number and reads past the end of a chunk that was cut short.
    if len(data) < 16 or int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError(f"the chunk of {len(data)} bytes is not as long as its header says")
    return imagecodecs.blosc_decode(data, out=out)


# Every one of them takes `out`, the size that is expected, and fails rather than give more.
_DECODERS: dict[str, Callable[..., Any]] = {
    "blosc": _blosc,
    "zstd": imagecodecs.zstd_decode,
    "gzip": imagecodecs.gzip_decode,
    "zlib": imagecodecs.zlib_decode,
    "lz4": lambda data, out: imagecodecs.lz4_decode(data, header=True, out=out),
    "bz2": imagecodecs.bz2_decode,
    "lzma": imagecodecs.lzma_decode,
}
# Both numbers of a chunk that a shard does not hold.
_ABSENT = 2**64 - 1
_INDEXES_KEPT = 64
METADATA_BYTES = 16 << 20
"""A metadata file above this is damaged."""


class Store(Protocol):
    """Where the files of a zarr hierarchy lie."""

    def size(self, key: str) -> int | None:
        """Stored bytes of a file, None where there is none."""

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file; fewer than asked for where it ends."""

    def close(self) -> None: ...


class FolderStore:
    """A folder on a local disk."""

    def __init__(self, root: str) -> None:
        self._root = root

    def size(self, key: str) -> int | None:
        try:
            return os.stat(os.path.join(self._root, key)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with open(os.path.join(self._root, key), "rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def close(self) -> None:
        pass


class ZipStore:
    """A zip file that holds a hierarchy, at its root or in its only folder."""

    def __init__(self, path: str) -> None:
        self._zip = zipfile.ZipFile(path)
        self._lock = Lock()
        tops = {name.split("/", 1)[0] for name in self._zip.namelist() if "/" in name}
        self._prefix = ""
        if len(tops) == 1 and not any(self.size(name) is not None for name in (".zattrs", "zarr.json", ".zgroup")):
            self._prefix = tops.pop() + "/"

    def _info(self, key: str) -> zipfile.ZipInfo | None:
        return self._zip.NameToInfo.get(self._prefix + key)

    def size(self, key: str) -> int | None:
        info = self._info(key)
        return None if info is None else info.compress_size

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        info = self._info(key)
        if info is None:
            raise FileNotFoundError(f"{key} is not in the zip file")
        if info.file_size > MAX_TILE_BYTES and length is None:
            raise ValueError(f"{key} claims {info.file_size:,} bytes")
        with self._lock, self._zip.open(info) as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def close(self) -> None:
        self._zip.close()


def read_json(store: Store, key: str) -> dict[str, Any] | None:
    """Return a metadata file's object; None where there is no such file.

    Raises:
        ValueError: not an object in JSON.
    """
    size = store.size(key)
    if size is None:
        return None
    if size > METADATA_BYTES:
        raise ValueError(f"{key} is {size:,} bytes long, which no metadata is")
    value = json.loads(store.read(key))
    if not isinstance(value, dict):
        raise ValueError(f"{key} holds no JSON object")
    return value


class Chunk(NamedTuple):
    """A decoded chunk and its stored bytes."""

    values: NDArray[Any]
    stored_bytes: int


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
    """One array, read by chunk."""

    def __init__(self, path: str, store: Store, name: str) -> None:
        self.path, self._store, self.name = path, store, name
        self._indexes: OrderedDict[str, NDArray[np.uint64]] = OrderedDict()
        self._lock = Lock()
        try:
            self._layout = _read_layout(path, store, name)
        except (UnsupportedFormatError, CorruptImageError):
            raise
        except Exception as error:  # whatever damaged metadata lead to
            raise CorruptImageError(path, f"array {name!r}: {type(error).__name__}: {error}") from error
        self.shape, self.chunks, self.dtype = (
            self._layout.shape,
            self._layout.chunks,
            self._layout.dtype.newbyteorder("="),
        )
        self.fill_value = self._layout.fill_value

    def read_chunk(self, at: Sequence[int]) -> Chunk | None:
        """Return the chunk at a place of the chunk grid; None where none is stored."""
        layout = self._layout
        if layout.shards is None:
            key = posixpath.join(self.name, layout.key(at))
            size = self._store.size(key)
            if size is None:
                return None
            self._check_size(size)
            return Chunk(self._decode(self._store.read(key)), size)
        per_shard = [shard // chunk for shard, chunk in zip(layout.shards, layout.chunks, strict=True)]
        shard = [place // count for place, count in zip(at, per_shard, strict=True)]
        inner = [place % count for place, count in zip(at, per_shard, strict=True)]
        key = posixpath.join(self.name, layout.key(shard))
        if self._store.size(key) is None:
            return None
        start, length = (int(number) for number in self._index(key, per_shard)[tuple(inner)])
        if start == length == _ABSENT:
            return None
        self._check_size(length)
        data = self._store.read(key, start, length)
        if len(data) != length:
            raise ValueError(f"the shard ends before its chunk of {length} bytes at {start}")
        return Chunk(self._decode(data), length)

    def _check_size(self, size: int) -> None:
        # No codec doubles what it is given.
        if size > 2 * self._chunk_bytes() + (1 << 20):
            raise ValueError(f"{size:,} stored bytes are more than such a chunk can take")

    def _chunk_bytes(self) -> int:
        return math.prod(self.chunks) * self.dtype.itemsize

    def _decode(self, data: bytes) -> NDArray[Any]:
        layout = self._layout
        expected = self._chunk_bytes()
        for codec in reversed(layout.codecs):
            data = _checked(data) if codec == "crc32c" else bytes(_DECODERS[codec](data, out=expected + 4))
        if len(data) != expected:
            raise ValueError(f"the chunk holds {len(data)} bytes, but {expected} are declared")
        stored_shape = [layout.chunks[axis] for axis in layout.order]
        values = np.frombuffer(data, layout.dtype).reshape(stored_shape)
        return values.transpose(np.argsort(layout.order)).astype(self.dtype, copy=False)

    def _index(self, key: str, per_shard: Sequence[int]) -> NDArray[np.uint64]:
        """The (start, length) of every chunk of a shard."""
        with self._lock:
            found = self._indexes.get(key)
            if found is not None:
                self._indexes.move_to_end(key)
                return found
        length = 16 * math.prod(per_shard) + 4 * self._layout.index_checked
        size = self._store.size(key) or 0
        data = self._store.read(key, 0 if self._layout.index_first else max(0, size - length), length)
        if len(data) != length:
            raise ValueError(f"the shard of {size} bytes is shorter than its index")
        if self._layout.index_checked:
            data = _checked(data)
        index = np.frombuffer(data, "<u8").reshape(*per_shard, 2)
        with self._lock:
            self._indexes[key] = index
            if len(self._indexes) > _INDEXES_KEPT:
                self._indexes.popitem(last=False)
        return index


def _checked(data: bytes) -> bytes:
    """Bytes without the CRC-32C that ends them."""
    import google_crc32c  # costs as much as all of ours, and few images need it

    if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its checksum (CRC-32C) does not match")
    return data[:-4]


# Metadata.


def _read_layout(path: str, store: Store, name: str) -> _Layout:
    said = read_json(store, posixpath.join(name, "zarr.json"))
    if said is not None:
        return _layout_3(path, name, said)
    said = read_json(store, posixpath.join(name, ".zarray"))
    if said is None:
        raise CorruptImageError(path, f"its array {name!r} is missing")
    return _layout_2(path, name, said)


def _layout_2(path: str, name: str, said: Mapping[str, Any]) -> _Layout:
    if said.get("filters"):
        raise UnsupportedFormatError(f"{path}: array {name!r} has filters, which are not supported")
    shape, chunks = _sizes(path, name, said["shape"], said["chunks"])
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
    shape, outer = _sizes(path, name, said["shape"], grid["configuration"]["chunk_shape"])
    shards, chunks, index_first, index_checked = None, outer, False, False
    if codecs[0]["name"] == "sharding_indexed":
        if len(codecs) > 1:
            raise UnsupportedFormatError(f"{path}: array {name!r} compresses whole shards, which is not supported")
        sharding = codecs[0]["configuration"]
        shards, (_, chunks) = outer, _sizes(path, name, shape, sharding["chunk_shape"])
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
        tuple(_codec(path, name, codec["name"]) for codec in codecs),
        index_first,
        index_checked,
        _key_encoding(said.get("chunk_key_encoding", {"name": "default"})),
    )


def _key_encoding(said: Mapping[str, Any]) -> Callable[[Sequence[int]], str]:
    separator = said.get("configuration", {}).get("separator", "/" if said["name"] == "default" else ".")
    prefix = ["c"] if said["name"] == "default" else []
    return lambda at: separator.join([*prefix, *map(str, at)])


def _sizes(path: str, name: str, shape: Any, chunks: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sizes = tuple(int(size) for size in shape), tuple(int(size) for size in chunks)
    if len(sizes[0]) != len(sizes[1]) or min(*sizes[0], *sizes[1], 1) < 1:
        raise CorruptImageError(path, f"array {name!r}: impossible shape {shape} with chunks {chunks}")
    return sizes


def _dtype(path: str, name: str, said: Any) -> np.dtype[Any]:
    dtype = np.dtype(said) if isinstance(said, str) else None
    if dtype is None or dtype.kind not in "buif":
        raise UnsupportedFormatError(f"{path}: array {name!r} is of type {said}, which is no image")
    return dtype


def _codec(path: str, name: str, codec: str) -> str:
    codec = codec.removeprefix("numcodecs.")
    if codec not in _DECODERS and codec != "crc32c":
        raise UnsupportedFormatError(f"{path}: array {name!r} is compressed by {codec!r}, which is not supported")
    return codec
