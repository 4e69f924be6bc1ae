"""Arrays that our own reader of chunks refuses: read by zarr-python, compared with what it wrote."""

from __future__ import annotations

import json
import pickle
import warnings
import zlib
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from pyrtrav.errors import CorruptImageError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.zarr_array import ZarrArray
from pyrtrav.pyramid.zarr_fallback import FallbackArray
from pyrtrav.pyramid.zarr_store import FolderStore
from tests.contracts.pyramid import picture

pytestmark = [
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3"),
    pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec"),
]

INNER = [BytesCodec(), ZstdCodec()]

V2: dict[str, dict[str, Any]] = {
    "delta": {"filters": numcodecs.Delta(dtype="u1")},
    "delta in lzma": {"filters": numcodecs.Delta(dtype="u1"), "compressors": numcodecs.LZMA()},
    "delta in blosc": {"filters": numcodecs.Delta(dtype="u1"), "compressors": numcodecs.Blosc("lz4")},
    "fixed scale": {
        "filters": numcodecs.FixedScaleOffset(offset=0, scale=1, dtype="<u2", astype="|u1"),
        "dtype": np.uint16,
    },
    "bit rounding": {"filters": numcodecs.BitRound(keepbits=12), "dtype": np.float32},
    "big endian delta": {"filters": numcodecs.Delta(dtype=">u2"), "dtype": np.dtype(">u2")},
    "checksum": {"compressors": numcodecs.Fletcher32()},
    "checksum in front": {"compressors": numcodecs.CRC32C(location="start")},
    "columns first": {"filters": numcodecs.Delta(dtype="u1"), "order": "F"},
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that these codecs are no part of the specification
    DELTA, SHUFFLE = zarr.codecs.numcodecs.Delta(dtype="|u1"), zarr.codecs.numcodecs.Shuffle(elementsize=4)
V3: dict[str, dict[str, Any]] = {
    "delta": {"filters": [DELTA], "compressors": [GzipCodec()]},
    "shuffle": {"compressors": [SHUFFLE], "dtype": np.float32},
    "shards in shards": {
        "chunks": (96, 128, 3),
        "serializer": ShardingCodec(
            chunk_shape=(48, 64, 3), codecs=[ShardingCodec(chunk_shape=(24, 32, 3), codecs=INNER)]
        ),
        "compressors": None,
    },
    "compressed shards": {
        "chunks": (96, 128, 3),
        "serializer": ShardingCodec(chunk_shape=(48, 64, 3), codecs=INNER),
        "compressors": [GzipCodec()],
    },
    "another index": {
        "chunks": (96, 128, 3),
        "serializer": ShardingCodec(
            chunk_shape=(48, 64, 3), codecs=INNER, index_codecs=[BytesCodec(), Crc32cCodec(), Crc32cCodec()]
        ),
        "compressors": None,
    },
}


def write(path: Path, values: NDArray[Any], version: int, **options: Any) -> Path:
    """One level in a group without metadata of an image."""
    options = {"chunks": (48, 64, 3), "fill_value": 0, **options}
    options.pop("dtype", None)
    root = zarr.open_group(path, mode="w", zarr_format=version)
    root.create_array("0", shape=values.shape, dtype=values.dtype, **options)[...] = values
    image = {"multiscales": [{"axes": [{"name": axis} for axis in "yxc"], "datasets": [{"path": "0"}]}]}
    root.attrs.update({"ome": image} if version == 3 else image)
    return path


@pytest.mark.parametrize(
    ("version", "name"), [(2, name) for name in V2] + [(3, name) for name in V3], ids=lambda part: str(part)
)
def test_every_chunk_is_what_was_written(version: int, name: str, tmp_path: Path) -> None:
    options = (V2 if version == 2 else V3)[name]
    values = np.maximum(picture(100, 130), 1).astype(options.get("dtype", np.uint8))
    values[:48, 64:128] = 0  # a chunk of the fill value is not stored
    path = write(tmp_path / "a.zarr", values, version, **options)
    store = FolderStore(str(path))
    with pytest.raises(UnsupportedFormatError):
        ZarrArray(str(path), store, "0")
    array = FallbackArray(str(path), store, "0")
    height, width, _ = array.chunks
    stored = 0
    assert (array.shape, array.dtype, array.fill_value) == (values.shape, values.dtype.newbyteorder("="), 0)
    for row in range(-(-100 // height)):
        for column in range(-(-130 // width)):
            truth = values[row * height : (row + 1) * height, column * width : (column + 1) * width]
            chunk = array.read_chunk((row, column, 0))
            assert (chunk is None) == bool((truth == 0).all())
            if chunk is not None:
                assert chunk.values.shape == array.chunks
                np.testing.assert_array_equal(chunk.values[: truth.shape[0], : truth.shape[1]], truth)
                stored += chunk.stored_bytes
    files = [file for file in (path / "0").rglob("*") if file.is_file() and file.name[0] not in ".z"]
    # The index of a shard is read for every chunk of it.
    assert 0 < stored <= sum(file.stat().st_size for file in files) * (1 if version == 2 else 3)


@pytest.mark.parametrize("fill", [0.0, 7.0, float("nan")])
def test_a_fill_value_that_is_no_whole_number(fill: float, tmp_path: Path) -> None:
    values = np.full((96, 128, 3), fill, np.float32)
    values[48:] = 0.5
    path = write(tmp_path / "a.zarr", values, 3, **{**V3["shards in shards"], "fill_value": fill})
    array = FallbackArray(str(path), FolderStore(str(path)), "0")
    assert array.read_chunk((0, 1, 0)) is None
    chunk = array.read_chunk((1, 1, 0))
    assert chunk is not None
    assert (chunk.values == 0.5).all()


@pytest.mark.parametrize("fill_value", [0, 7])
def test_a_stored_chunk_of_the_fill_value_is_not_a_missing_one(fill_value: int, tmp_path: Path) -> None:
    values = picture(96, 128)
    values[:48] = fill_value
    options = {**V3["shards in shards"], "config": {"write_empty_chunks": True}, "fill_value": fill_value}
    written = write(tmp_path / "all.zarr", values, 3, **options)
    options["config"] = {"write_empty_chunks": False}
    left_out = write(tmp_path / "some.zarr", values, 3, **options)
    for path, is_stored in ((written, True), (left_out, False)):
        with open_pyramid(path) as pyramid:
            assert pyramid.properties["chunks_read_by"] == "zarr-python"
            tile = pyramid.read(Region(0, 0, 128, 96), (128, 96), mask=True)
        assert tile.valid is not None
        assert (tile.valid[:48] == is_stored).all()
        assert tile.valid[48:].all()
        np.testing.assert_array_equal(tile.pixels[48:], values[48:])
        assert (tile.pixels[:48] == (fill_value if is_stored else 255)).all()


def change(path: Path, **said: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))


def test_a_codec_that_nobody_reads_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", picture(48, 64), 2)
    change(path / "0/.zarray", filters=[{"id": "wavelet"}])
    with pytest.raises(UnsupportedFormatError, match="stored by wavelet, blosc, which neither pyrtrav nor zarr-python"):
        open_pyramid(path)
    path = write(tmp_path / "b.zarr", picture(48, 64), 3)
    change(path / "0/zarr.json", codecs=[{"name": "bytes"}, {"name": "numcodecs.wavelet", "configuration": {}}])
    with pytest.raises(UnsupportedFormatError, match="stored by bytes, wavelet, which neither"):
        open_pyramid(path)


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", picture(48, 64), 2, compressors=None)
    proof = tmp_path / "ran"
    (path / "0/0.0.0").write_bytes(pickle.dumps(_Payload(proof)))
    change(path / "0/.zarray", filters=[{"id": "pickle", "protocol": 5}])
    with pytest.raises(UnsupportedFormatError, match="stored by pickle, which may run any program"):
        open_pyramid(path)
    assert not proof.exists()


def test_a_chunk_takes_no_more_memory_than_is_declared(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", picture(48, 128), 2, **V2["delta"], compressors=numcodecs.Zlib())
    (path / "0/0.1.0").write_bytes(zlib.compress(bytes(64 << 20)))
    with open_pyramid(path) as pyramid:
        patches = pyramid.read_many([Region(0, 0, 9, 9), Region(70, 0, 9, 9)], 9)
    assert patches.errors[0] is None
    assert isinstance(patches.errors[1], CorruptImageError)
    assert "Zlib" in str(patches.errors[1])


def test_text_is_no_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", picture(48, 64), 2, **V2["delta"])
    change(path / "0/.zarray", dtype="<U4", filters=None, fill_value="")
    with pytest.raises(UnsupportedFormatError, match="which is no image"):
        open_pyramid(path)
