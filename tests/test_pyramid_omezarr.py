"""OME-Zarr: written by zarr-python, compared with what was written."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from pyrtrav.errors import CorruptImageError, PyramidError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.inspect import claims
from pyrtrav.pyramid.zarr_array import ZarrArray
from pyrtrav.pyramid.zarr_store import FolderStore
from tests.contracts.pyramid import PyramidContract, Sample, halvings_of, picture

HEIGHT, WIDTH = 139, 205
TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def multiscales(axes: str, count: int, scale: float, unit: str | None) -> list[dict[str, Any]]:
    described: list[dict[str, Any]] = [{"name": axis, "type": TYPES[axis]} for axis in axes]
    for axis in described:
        if axis["name"] in "yx" and unit:
            axis["unit"] = unit
    datasets = []
    for level in range(count):
        factors = [scale * 2**level if axis in "yx" else 1.0 for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": factors}]})
    return [{"axes": described, "datasets": datasets, "name": "picture"}]


def write_zarr(
    path: Path,
    levels: list[NDArray[Any]],
    axes: str,
    *,
    version: int,
    unit: str | None = "micrometer",
    scale: float = 0.25,
    omero: Any = None,
    **options: Any,
) -> Path:
    """Write arrays whose axes are already in the order of ``axes``."""
    root = zarr.open_group(path, mode="w", zarr_format=version)
    said: dict[str, Any] = {"multiscales": multiscales(axes, len(levels), scale, unit)}
    if omero is not None:
        said["omero"] = omero
    said = {"ome": {"version": "0.5", **said}} if version == 3 else said
    root.attrs.update(said)
    for index, level in enumerate(levels):
        array = root.create_array(str(index), shape=level.shape, dtype=level.dtype, **options)
        array[...] = level
    return path


def chunk_files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file() and not file.name.startswith((".z", "zarr.json"))]


def stored_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in chunk_files(path))


def cut_short(path: Path, chunk: str) -> Path:
    copy = path.with_name(f"damaged-{path.name}")
    shutil.copytree(path, copy)
    file = copy / chunk
    file.write_bytes(file.read_bytes()[:-9])
    return copy


def format_2(folder: Path) -> Sample:
    levels = halvings_of(picture(HEIGHT, WIDTH), 1)
    axes = [level.transpose(2, 0, 1)[:, None] for level in levels]
    path = write_zarr(
        folder / "a.ome.zarr",
        axes,
        "czyx",
        version=2,
        chunks=(1, 1, 48, 64),
        compressors=numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE),
        chunk_key_encoding={"name": "v2", "separator": "/"},
        fill_value=0,
    )
    damaged = cut_short(path, "0/1/0/1/1")
    # The tile (1, 0) of level 0 is not stored, of the tile (2, 0) one channel.
    for channel in range(3):
        (path / f"0/{channel}/0/0/1").unlink()
    (path / "0/2/0/0/2").unlink()
    valid = [np.ones(level.shape[:2], bool) for level in levels]
    valid[0][:48, 64:128] = False
    levels[0][:48, 64:128] = 255
    levels[0][:48, 128:192, 2] = 0
    return Sample(path, levels, valid, stored_bytes=stored_bytes(path), mpp=0.25, damaged=damaged)


def format_2_channels_last(folder: Path) -> Sample:
    levels = halvings_of(picture(HEIGHT, WIDTH, 1), 1)
    path = write_zarr(
        folder / "last.zarr",
        levels,
        "yxc",
        version=2,
        unit="millimeter",
        scale=0.0005,
        chunks=(48, 64, 3),
        compressors=numcodecs.GZip(),
        chunk_key_encoding={"name": "v2", "separator": "."},
        order="F",
    )
    return Sample(path, levels, stored_bytes=stored_bytes(path), mpp=0.5, damaged=cut_short(path, "0/1.1.0"))


def format_3_sharded(folder: Path) -> Sample:
    levels = halvings_of(picture(HEIGHT, WIDTH, 2), 1)
    levels[0][:48, 64:128] = 0  # a chunk of the fill value is not stored
    axes = [level.transpose(2, 0, 1)[None] for level in levels]
    path = write_zarr(
        folder / "sharded.zarr",
        axes,
        "tcyx",
        version=3,
        unit=None,
        chunks=(1, 3, 48, 64),
        shards=(1, 3, 96, 128),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=0,
    )
    valid = [np.ones(level.shape[:2], bool) for level in levels]
    valid[0][:48, 64:128] = False
    levels[0][:48, 64:128] = 255
    damaged = folder / "damaged.zarr"
    shutil.copytree(path, damaged)
    shard = damaged / "0/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    index = np.frombuffer(data[-68:-4], "<u8").reshape(2, 2, 2)
    start = int(index[1, 1, 0])
    data[start + 40] ^= 0xFF
    shard.write_bytes(data)
    shards = [np.frombuffer(file.read_bytes()[-68:-4], "<u8").reshape(-1, 2)[:, 1] for file in chunk_files(path)]
    stored = sum(int(length) for lengths in shards for length in lengths if length != 2**64 - 1)
    return Sample(path, levels, valid, stored_bytes=stored, damaged=damaged)


def format_3_big_endian(folder: Path) -> Sample:
    gray = [level[..., 1].astype(np.uint16) * 200 for level in halvings_of(picture(HEIGHT, WIDTH, 3), 1)]
    path = write_zarr(
        folder / "wide.zarr",
        gray,
        "yx",
        version=3,
        chunks=(48, 64),
        filters=[TransposeCodec(order=(1, 0))],
        serializer=BytesCodec(endian="big"),
        compressors=[GzipCodec()],
        omero={"channels": [{"window": {"start": 500, "end": 40_500, "min": 0, "max": 65_535}}]},
        fill_value=9,
    )
    shown = [np.rint(np.clip((level - 500.0) * (255 / 40_000), 0, 255)).astype(np.uint8) for level in gray]
    levels = [np.repeat(level[:, :, None], 3, axis=2) for level in shown]
    damaged = cut_short(path, "0/c/1/1")
    return Sample(path, levels, stored_bytes=stored_bytes(path), mpp=0.25, damaged=damaged)


def in_a_zip_file(folder: Path) -> Sample:
    sample = format_3_sharded(folder)
    path, damaged = folder / "picture.ome.zarr.zip", folder / "damaged.zip"
    for target, source, below in ((path, sample.path, "top/"), (damaged, sample.damaged, "")):
        assert source is not None
        with zipfile.ZipFile(target, "w") as file:
            for name in sorted(file for file in source.rglob("*") if file.is_file()):
                file.write(name, below + str(name.relative_to(source)))
    return Sample(path, sample.levels, sample.valid, stored_bytes=sample.stored_bytes, damaged=damaged)


def filtered(folder: Path) -> Sample:
    """What only zarr-python reads."""
    levels = halvings_of(picture(HEIGHT, WIDTH, 4), 1)
    path = write_zarr(
        folder / "filtered.zarr",
        levels,
        "yxc",
        version=2,
        chunks=(48, 64, 3),
        filters=[numcodecs.Delta(dtype="u1"), numcodecs.Shuffle(elementsize=1)],
        compressors=numcodecs.Zlib(),
        fill_value=0,
    )
    damaged = cut_short(path, "0/1.1.0")
    (path / "0/0.1.0").unlink()
    valid = [np.ones(level.shape[:2], bool) for level in levels]
    valid[0][:48, 64:128] = False
    levels[0][:48, 64:128] = 255
    return Sample(path, levels, valid, stored_bytes=stored_bytes(path), mpp=0.25, damaged=damaged)


WRITERS = [format_2, format_2_channels_last, format_3_sharded, format_3_big_endian, in_a_zip_file, filtered]


class TestOmeZarr(PyramidContract):
    @pytest.fixture(params=WRITERS, ids=lambda writer: writer.__name__)
    def sample(self, request: pytest.FixtureRequest, tmp_path: Path) -> Sample:
        writer: Callable[[Path], Sample] = request.param
        return writer(tmp_path)


def whole(pyramid: Pyramid) -> NDArray[np.uint8]:
    return pyramid.read(Region(0, 0, pyramid.width, pyramid.height), (pyramid.width, pyramid.height)).pixels


V2_CODECS = {
    "none": None,
    "blosc zstd": numcodecs.Blosc("zstd", 3, numcodecs.Blosc.BITSHUFFLE),
    "blosc blosclz": numcodecs.Blosc("blosclz"),
    "zstd": numcodecs.Zstd(),
    "lz4": numcodecs.LZ4(),
    "zlib": numcodecs.Zlib(),
    "bz2": numcodecs.BZ2(),
    "lzma": numcodecs.LZMA(),
}


@pytest.mark.parametrize("codec", V2_CODECS.values(), ids=V2_CODECS)
def test_codecs_of_format_2(codec: Any, tmp_path: Path) -> None:
    pixels = picture(100, 130)
    path = write_zarr(tmp_path / "a.zarr", [pixels], "yxc", version=2, chunks=(48, 64, 2), compressors=codec)
    with open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(whole(pyramid), pixels)
        assert pyramid.cost.bytes_read == stored_bytes(path)


V3_OPTIONS: dict[str, dict[str, Any]] = {
    "none": {"compressors": None},
    "blosc": {"compressors": BloscCodec(cname="lz4")},
    "index first": {"shards": (96, 128, 3), "compressors": ZstdCodec()},
    "key of format 2": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "floats": {"dtype": np.float32},
    "booleans": {"dtype": np.bool_},
}


@pytest.mark.parametrize("name", V3_OPTIONS)
def test_arrays_of_format_3_equal_zarr_python(name: str, tmp_path: Path) -> None:
    options = dict(V3_OPTIONS[name])
    values = picture(100, 130).astype(options.pop("dtype", np.uint8))
    if name == "index first":
        shards = {"shape": options.pop("shards"), "index_location": "start"}
        options["shards"] = shards
    path = tmp_path / "a.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=3)
    stored = root.create_array("level", shape=values.shape, chunks=(48, 64, 3), dtype=values.dtype, **options)
    stored[...] = values
    array = ZarrArray(str(path), FolderStore(str(path)), "level")
    assert (array.shape, array.chunks, array.dtype) == (values.shape, (48, 64, 3), values.dtype)
    for row in range(3):
        for column in range(3):
            chunk = array.read_chunk((row, column, 0))
            assert chunk is not None
            truth = values[row * 48 : row * 48 + 48, column * 64 : column * 64 + 64]
            np.testing.assert_array_equal(chunk.values[: truth.shape[0], : truth.shape[1]], truth)


def test_of_many_channels_only_the_wanted_are_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 255, (7, 100, 130)).astype(np.uint8)
    path = write_zarr(tmp_path / "a.zarr", [values], "cyx", version=3, chunks=(1, 100, 130), compressors=None)
    with open_pyramid(path) as pyramid, open_pyramid(path, channels=(6, 0, 3)) as chosen:
        np.testing.assert_array_equal(whole(pyramid), values[:3].transpose(1, 2, 0))
        np.testing.assert_array_equal(whole(chosen), values[[6, 0, 3]].transpose(1, 2, 0))
        assert pyramid.cost.bytes_read == chosen.cost.bytes_read == 3 * 13_000
    with pytest.raises(PyramidError, match="channels"):
        open_pyramid(path, channels=(7,))


def test_first_time_and_focal_plane(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(1, 255, (2, 3, 4, 60, 70)).astype(np.uint8)
    path = write_zarr(tmp_path / "a.zarr", [values], "tczyx", version=3, chunks=(2, 2, 2, 32, 32))
    with open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(whole(pyramid), values[0, :, 0].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("unit", "scale", "mpp"),
    [
        ("micrometer", 0.5, 0.5),
        ("nanometer", 500, 0.5),
        ("millimeter", 0.0005, 0.5),
        ("angstrom", 5000, 0.5),
        (None, 1, None),
        ("parsec", 1, None),
        ("meter", 1, None),
        ("micrometer", 0, None),
    ],
)
def test_mpp_needs_a_unit(unit: str | None, scale: float, mpp: float | None, tmp_path: Path) -> None:
    path = write_zarr(
        tmp_path / "a.zarr", [picture(40, 50)], "yxc", version=3, unit=unit, scale=scale, chunks=(32, 32, 3)
    )
    with open_pyramid(path) as pyramid:
        assert pyramid.mpp == (None if mpp is None else pytest.approx(mpp))


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def test_transformations_of_the_whole_image_count(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", [picture(40, 50)], "yxc", version=2, scale=2, chunks=(32, 32, 3))

    def add(said: Any) -> None:
        said["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [0.25, 0.25, 1]}]

    edit_json(path / ".zattrs", add)
    with open_pyramid(path) as pyramid:
        assert pyramid.mpp == pytest.approx(0.5)


def test_first_versions_name_no_axes(tmp_path: Path) -> None:
    values = picture(40, 50).transpose(2, 0, 1)[None, :, None]
    path = write_zarr(tmp_path / "a.zarr", [values], "tczyx", version=2, chunks=(1, 1, 1, 32, 32))
    edit_json(path / ".zattrs", lambda said: said["multiscales"][0].pop("axes") and None)
    with open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(whole(pyramid), picture(40, 50))
        assert pyramid.mpp is None


def small(folder: Path, version: int) -> Path:
    levels = halvings_of(picture(100, 130), 1)
    return write_zarr(folder / f"v{version}.zarr", levels, "yxc", version=version, chunks=(64, 64, 3))


def array_json(path: Path, version: int) -> Path:
    return path / "0" / ("zarr.json" if version == 3 else ".zarray")


def group_json(path: Path, version: int) -> Path:
    return path / ("zarr.json" if version == 3 else ".zattrs")


def collection(root: Path, version: int, count: int, series: list[str] | None = None) -> None:
    """What bioformats2raw writes: images 0, 1, ... beside OME/METADATA.ome.xml."""
    said = {"bioformats2raw.layout": 3}
    zarr.open_group(root, mode="w", zarr_format=version).attrs.update({"ome": said} if version == 3 else said)
    for number in range(count):
        write_zarr(
            root / str(number), [picture(40, 50, seed=number)], "yxc", version=version, chunks=(32, 32, 3), fill_value=0
        )
    if series is not None:
        names = zarr.open_group(root / "OME", mode="w", zarr_format=version)
        names.attrs.update({"ome": {"series": series}} if version == 3 else {"series": series})
        (root / "OME/METADATA.ome.xml").write_text("<OME/>")


@pytest.mark.parametrize("version", [2, 3])
def test_a_collection_gives_its_first_image_and_names_the_others(version: int, tmp_path: Path) -> None:
    root = tmp_path / "collection.zarr"
    collection(root, version, 3)
    with open_pyramid(root) as pyramid, open_pyramid(root / "1") as second:
        np.testing.assert_array_equal(whole(pyramid), picture(40, 50))
        np.testing.assert_array_equal(whole(second), picture(40, 50, seed=1))
        assert (pyramid.properties["image"], pyramid.properties["other_images"]) == ("0", "1, 2")
        assert "image" not in second.properties
    assert claims(root)
    collection(root, version, 6, series=["4", "3", "0", "1", "5", "2"])
    with open_pyramid(root) as pyramid:
        np.testing.assert_array_equal(whole(pyramid), picture(40, 50, seed=4))
        assert (pyramid.properties["image"], pyramid.properties["other_images"]) == ("4", "3, 0, 1, 5 and 1 more")


@pytest.mark.parametrize(
    ("series", "said"), [(["9"], "first image '9' has no `multiscales`"), (["../0"], "lies outside of it")]
)
def test_a_collection_of_nothing(series: list[str], said: str, tmp_path: Path) -> None:
    collection(tmp_path / "a.zarr", 3, 1, series)
    with pytest.raises(CorruptImageError, match=said):
        open_pyramid(tmp_path / "a.zarr")


def set_attributes(path: Path, version: int, said: dict[str, Any]) -> None:
    zarr.open_group(path, mode="a", zarr_format=version).attrs.update({"ome": said} if version == 3 else said)


@pytest.mark.parametrize("version", [2, 3])
def test_plates_and_wells_name_their_images(version: int, tmp_path: Path) -> None:
    plate = tmp_path / "plate.zarr"
    wells = [f"{row}/{column}" for row in "AB" for column in (1, 2)]
    set_attributes(plate, version, {"plate": {"wells": [{"path": well} for well in wells]}})
    for well in wells:
        set_attributes(plate / well, version, {"well": {"images": [{"path": "0"}, {"path": "1"}]}})
    write_zarr(plate / "B/2/1", [picture(40, 50)], "yxc", version=version, chunks=(32, 32, 3), fill_value=0)
    named = ", ".join(f"{plate}/{image}" for image in ("A/1/0", "A/1/1", "A/2/0", "A/2/1"))
    with pytest.raises(UnsupportedFormatError) as error:
        open_pyramid(plate)
    assert f"is a plate of 4 wells with many images; open one of them: {named} and 4 more" in str(error.value)
    with pytest.raises(UnsupportedFormatError) as error:
        open_pyramid(plate / "B/2")
    named = ", ".join(f"{plate}/B/2/{image}" for image in (0, 1))
    assert str(error.value).endswith(f"is a well with many images; open one of them: {named}")
    with open_pyramid(plate / "B/2/1") as pyramid:
        np.testing.assert_array_equal(whole(pyramid), picture(40, 50))
    set_attributes(tmp_path / "empty.zarr", version, {"plate": {"wells": []}})
    with pytest.raises(UnsupportedFormatError, match="is a plate of 0 wells without images"):
        open_pyramid(tmp_path / "empty.zarr")


def test_labels_are_no_levels(tmp_path: Path) -> None:
    path = small(tmp_path, 2)
    zarr.open_group(path / "labels", mode="w", zarr_format=2).attrs.update({"labels": ["cells"]})
    write_zarr(path / "labels/cells", [picture(100, 130)], "yxc", version=2, chunks=(64, 64, 3))
    with open_pyramid(path) as pyramid:
        assert len(pyramid.levels) == 2
        assert "levels_left_out" not in pyramid.properties


CONTRADICTIONS: dict[str, Any] = {
    "zero": [{"type": "scale", "scale": [0, 0, 0]}],
    "not a number": [{"type": "scale", "scale": [float("nan")] * 3}],
    "all the same": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}],
    "negative": [{"type": "scale", "scale": [-2.0, -2.0, 1]}],
    "a translation": [{"type": "translation", "translation": [7.0, 9.0, 0.0]}],
    "nothing": [],
}


@pytest.mark.parametrize("said", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_the_scale_of_a_level_is_its_shapes(said: Any, tmp_path: Path) -> None:
    levels = halvings_of(picture(100, 131), 2)
    path = write_zarr(tmp_path / "a.zarr", levels, "yxc", version=2, chunks=(64, 64, 3))

    def replace(metadata: Any) -> None:
        for dataset in metadata["multiscales"][0]["datasets"]:
            dataset["coordinateTransformations"] = said
        metadata["multiscales"][0]["datasets"].reverse()

    edit_json(path / ".zattrs", replace)
    with open_pyramid(path) as pyramid:
        assert [(level.height, level.width) for level in pyramid.levels] == [level.shape[:2] for level in levels]
        assert [level.downsample_y for level in pyramid.levels] == [1, 2, 4]
        assert [level.downsample_x for level in pyramid.levels] == [1, 131 / 66, 131 / 33]
        np.testing.assert_array_equal(pyramid.read(Region(0, 0, 131, 100), (33, 25)).pixels, levels[2])


@pytest.mark.parametrize("version", [2, 3])
def test_a_missing_coarse_level_is_left_out_visibly(version: int, tmp_path: Path) -> None:
    levels = halvings_of(picture(100, 130), 2)
    path = write_zarr(tmp_path / "a.zarr", levels, "yxc", version=version, chunks=(64, 64, 3))
    shutil.rmtree(path / "1")
    with open_pyramid(path) as pyramid:
        assert [level.width for level in pyramid.levels] == [130, 33]
        assert pyramid.properties["levels_left_out"] == "1 (missing)"
        np.testing.assert_array_equal(pyramid.read(Region(0, 0, 130, 100), (33, 25)).pixels, levels[2])

    def reverse(said: Any) -> None:
        said.get("attributes", {"ome": said})["ome"]["multiscales"][0]["datasets"].reverse()

    edit_json(group_json(path, version), reverse)  # now nobody can tell which one is missing
    with pytest.raises(CorruptImageError, match="array '1' is missing, which may be the finest"):
        open_pyramid(path)


def test_a_level_of_another_shape_is_left_out_visibly(tmp_path: Path) -> None:
    levels = [picture(100, 130), picture(50, 65), picture(30, 10)]
    path = write_zarr(tmp_path / "a.zarr", levels, "yxc", version=3, chunks=(64, 64, 3))
    with open_pyramid(path) as pyramid:
        assert [level.width for level in pyramid.levels] == [130, 65]
        assert pyramid.properties["levels_left_out"] == "2 (no further scale of the image)"


def test_levels_of_other_channels_are_no_levels(tmp_path: Path) -> None:
    levels = [picture(100, 130), picture(50, 65)[..., :2]]
    path = write_zarr(tmp_path / "a.zarr", levels, "yxc", version=3, chunks=(64, 64, 1))
    with pytest.raises(CorruptImageError, match="differ in their number of channels"):
        open_pyramid(path)


@pytest.mark.parametrize("filters", [None, numcodecs.Delta(dtype="u1")], ids=["ours", "zarr-python"])
@pytest.mark.parametrize("axes", ["yxc", "cyx"])
def test_a_missing_chunk_without_a_fill_value_is_an_error(axes: str, filters: Any, tmp_path: Path) -> None:
    pixels = picture(100, 130)
    values, chunks = (pixels, (64, 64, 3)) if axes == "yxc" else (pixels.transpose(2, 0, 1), (1, 64, 64))
    path = write_zarr(tmp_path / "a.zarr", [values], axes, version=2, chunks=chunks, filters=filters, fill_value=None)
    (path / ("0/0.1.0" if axes == "yxc" else "0/1.0.1")).unlink()
    with open_pyramid(path) as pyramid:
        assert pyramid.properties["chunks_read_by"] == ("zarr-python" if filters else "pyrtrav")
        patches = pyramid.read_many([Region(0, 0, 9, 9), Region(70, 0, 9, 9)], 9)
    assert patches.errors[0] is None
    np.testing.assert_array_equal(patches.pixels[0], pixels[:9, :9])
    assert isinstance(patches.errors[1], CorruptImageError)
    assert "tile column 1, row 0: its chunk is not stored, and the array declares no fill" in str(patches.errors[1])


def test_a_compressed_zip_file(tmp_path: Path) -> None:
    sample = format_3_sharded(tmp_path)
    path = tmp_path / "packed.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in sorted(file for file in sample.path.rglob("*") if file.is_file()):
            file.write(name, name.relative_to(sample.path))
    with open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(whole(pyramid), sample.levels[0])


METADATA_DAMAGE: dict[str, tuple[Callable[[Path, int], object], str]] = {
    "no json": (lambda path, v: array_json(path, v).write_text("{]"), "array '0'"),
    "no object": (lambda path, v: array_json(path, v).write_text("[1]"), "holds no JSON object"),
    "the finest level is missing": (lambda path, v: shutil.rmtree(path / "0"), "array '0' is missing"),
    "no level is there": (lambda path, v: [shutil.rmtree(path / name) for name in "01"], "none of its levels is there"),
    "no shape": (lambda path, v: edit_json(array_json(path, v), lambda said: said.pop("shape") and None), "array '0'"),
    "shape of nothing": (
        lambda path, v: edit_json(array_json(path, v), lambda said: said.update(shape=[0, 5, 3])),
        "impossible shape",
    ),
    "other axes": (
        lambda path, v: edit_json(array_json(path, v), lambda said: said.update(shape=[100, 130])),
        "impossible shape",
    ),
    "no image type": (
        lambda path, v: edit_json(
            array_json(path, v), lambda said: said.update({"dtype": "|S5", "data_type": "string"})
        ),
        "",
    ),
    "metadata no json": (lambda path, v: group_json(path, v).write_text("no"), "metadata cannot be read"),
    "no multiscales": (lambda path, v: group_json(path, v).write_text("{}"), "has no `multiscales` metadata"),
    "outside": (
        lambda path, v: edit_json(
            group_json(path, v), lambda said: json.loads(json.dumps(said).replace('"path": "1"', '"path": "../../1"'))
        ),
        "lies outside",
    ),
    "giant chunks": (
        lambda path, v: edit_json(
            array_json(path, v),
            lambda said: said.update(
                chunks=[10**6, 10**6, 3],
                chunk_grid={"name": "regular", "configuration": {"chunk_shape": [10**6, 10**6, 3]}},
            ),
        ),
        "cannot be read lazily",
    ),
}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("damage", METADATA_DAMAGE)
def test_damaged_metadata(damage: str, version: int, tmp_path: Path) -> None:
    path = small(tmp_path, version)
    harm, said = METADATA_DAMAGE[damage]
    harm(path, version)
    with pytest.raises(PyramidError, match=said or "array|type"):
        open_pyramid(path)


def test_an_impossible_size_is_opened_but_never_listed(tmp_path: Path) -> None:
    path = small(tmp_path, 3)
    edit_json(array_json(path, 3), lambda said: said.update(shape=[10**12, 10**12, 3]))
    shutil.rmtree(path / "1")
    edit_json(path / "zarr.json", lambda said: said["attributes"]["ome"]["multiscales"][0]["datasets"].pop() and None)
    with open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(pyramid.read(Region(0, 0, 64, 64), 64).pixels, picture(100, 130)[:64, :64])
        with pytest.raises(PyramidError, match="tiles of a level of 1000000000000 x 1000000000000"):
            pyramid.read(Region(0, 0, 10**12, 10**12), 64)


CHUNK_DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda chunk: chunk.write_bytes(b""),
    "zeros": lambda chunk: chunk.write_bytes(bytes(500)),
    "random": lambda chunk: chunk.write_bytes(np.random.default_rng(0).bytes(5000)),
    "far too long": lambda chunk: chunk.write_bytes(bytes(5_000_000)),
    "a folder": lambda chunk: (chunk.unlink(), chunk.mkdir()),
}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("damage", CHUNK_DAMAGE)
def test_damaged_chunks(damage: str, version: int, tmp_path: Path) -> None:
    path = small(tmp_path, version)
    CHUNK_DAMAGE[damage](path / "0" / ("c/0/1/0" if version == 3 else "0.1.0"))
    with open_pyramid(path) as pyramid:
        patches = pyramid.read_many([Region(0, 0, 9, 9), Region(70, 0, 9, 9)], 9)
    assert patches.errors[0] is None
    assert isinstance(patches.errors[1], CorruptImageError)
    assert (patches.errors[1].column, patches.errors[1].row) == (1, 0)


@pytest.mark.parametrize("damage", ["cut short", "index", "empty"])
def test_damaged_shards(damage: str, tmp_path: Path) -> None:
    sample = format_3_sharded(tmp_path)
    shard = sample.path / "0/c/0/0/0/0"
    data = shard.read_bytes()
    index = bytearray(data)
    index[-60] ^= 1
    shard.write_bytes({"cut short": data[: len(data) // 2], "index": bytes(index), "empty": b""}[damage])
    with open_pyramid(sample.path) as pyramid:
        patches = pyramid.read_many([Region(0, 0, 9, 9), Region(130, 0, 9, 9)], 9)
    assert isinstance(patches.errors[0], CorruptImageError)
    assert patches.errors[1] is None


def test_a_missing_shard_is_declared_empty(tmp_path: Path) -> None:
    sample = format_3_sharded(tmp_path)
    os.remove(sample.path / "0/c/0/0/0/1")
    with open_pyramid(sample.path) as pyramid:
        tile = pyramid.read(Region(130, 0, 9, 9), 9, mask=True)
    assert (tile.pixels == 255).all()
    assert tile.valid is not None
    assert not tile.valid.any()


def test_zip_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert not claims(path)
    with pytest.raises(UnsupportedFormatError, match="neither a zarr folder nor a readable zip file"):
        open_pyramid(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "nothing")
    assert not claims(path)
    with pytest.raises(UnsupportedFormatError, match="no `multiscales` metadata"):
        open_pyramid(path)


def test_a_chunk_of_several_planes_and_one_channel_is_no_tile(tmp_path: Path) -> None:
    colors = np.broadcast_to(np.array([10, 100, 200], np.uint8), (3, 64, 64, 3))
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", shape=colors.shape, chunks=(3, 32, 32, 1), dtype="u1")[:] = colors
    axes = [{"name": name, "type": "channel" if name == "c" else "space"} for name in "zyxc"]
    scale = [{"type": "scale", "scale": [1, 1, 1, 1]}]
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    ]
    with open_pyramid(tmp_path / "a.zarr") as pyramid:
        assert (pyramid.read(Region(0, 0, 64, 64), 64).pixels == [10, 100, 200]).all()
