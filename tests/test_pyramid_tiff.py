"""TIFF: written by tifffile, compared with its decoding, with OpenSlide's and with the array that was written."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, PyramidError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.tiff_decode import jpeg_2000_size, read_jpeg_header
from tests.contracts.pyramid import PyramidContract, Sample, halvings_of, picture

PLAIN: dict[str, Any] = {"tile": (48, 64), "metadata": None, "software": False}


def write_tiff(path: Path, levels: list[NDArray[Any]], *, sub_ifds: bool = False, **options: Any) -> Path:
    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False)) as tif:
        for index, level in enumerate(levels):
            extra: dict[str, Any] = {"subfiletype": int(index > 0)}
            if sub_ifds and index == 0:
                extra["subifds"] = len(levels) - 1
            tif.write(level, **{**PLAIN, **options, **extra})
    return path


def pages_of(tif: tifffile.TiffFile) -> list[Any]:
    return [*tif.pages, *(tif.pages[0].pages or ())]


def decoded_levels(path: Path) -> list[NDArray[np.uint8]]:
    with tifffile.TiffFile(path) as tif:
        return [page.asarray() for page in pages_of(tif)]


def all_stored_bytes(path: Path) -> int:
    with tifffile.TiffFile(path) as tif:
        return sum(sum(page.databytecounts) for page in pages_of(tif))


def set_tile(path: Path, number: int, *, count: int | None = None, offset: int | None = None) -> None:
    """Change an entry of level 0's table; a count of -2 halves it."""
    with tifffile.TiffFile(path, mode="r+") as tif:
        tags = tif.pages[0].tags
        for names, value in ((("TileByteCounts", "StripByteCounts"), count), (("TileOffsets", "StripOffsets"), offset)):
            if value is not None:
                tag = tags.get(names[0]) or tags[names[1]]
                table = list(tag.value)
                table[number] = table[number] // 2 if value == -2 else value
                tag.overwrite(table)


def middle_tile(path: Path) -> int:
    with tifffile.TiffFile(path) as tif:
        page: Any = tif.pages[0]
        if not page.is_tiled:
            return int(page.imagelength // 2 // page.rowsperstrip)
        columns = -(-page.imagewidth // page.tilewidth)
        return int(page.imagelength // 2 // page.tilelength * columns + page.imagewidth // 2 // page.tilewidth)


def damaged_copy(path: Path) -> Path:
    copy = path.with_name(f"damaged-{path.name}")
    shutil.copy(path, copy)
    set_tile(copy, middle_tile(copy), count=-2)
    return copy


def jpeg_pyramid(folder: Path) -> Sample:
    options = {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2), "resolution": (40_000, 40_000)}
    path = write_tiff(folder / "jpeg.tif", halvings_of(picture(139, 205), 2), resolutionunit=3, **options)
    return Sample(path, decoded_levels(path), stored_bytes=all_stored_bytes(path), mpp=0.25)


def sparse_sub_ifds(folder: Path) -> Sample:
    levels = halvings_of(picture(139, 205, 1), 2)
    path = write_tiff(
        folder / "sparse.tif", levels, sub_ifds=True, photometric="rgb", compression="deflate", bigtiff=True
    )
    set_tile(path, 1, count=0, offset=0)
    valid = [np.ones(level.shape[:2], bool) for level in levels]
    valid[0][:48, 64:128] = False
    levels[0][:48, 64:128] = 255
    return Sample(path, levels, valid, stored_bytes=all_stored_bytes(path))


def strips(folder: Path) -> Sample:
    level = picture(139, 205, 2)
    path = write_tiff(folder / "strips.tif", [level], tile=None, rowsperstrip=32, photometric="rgb", compression="lzw")
    return Sample(path, [level], stored_bytes=all_stored_bytes(path))


def sixteen_bit_planes(folder: Path) -> Sample:
    low, high = 1000, 51_000
    wide = [level.astype(np.uint16) * 230 for level in halvings_of(picture(139, 205, 3), 1)]
    tags = [(340, "H", 3, (low,) * 3, True), (341, "H", 3, (high,) * 3, True)]
    planes = [np.ascontiguousarray(level.transpose(2, 0, 1)) for level in wide]
    path = write_tiff(
        folder / "planes.tif", planes, photometric="rgb", planarconfig="separate", compression="zstd", extratags=tags
    )
    levels = [
        np.rint(np.clip((level - float(low)) * (255.0 / (high - low)), 0, 255)).astype(np.uint8) for level in wide
    ]
    return Sample(path, levels, stored_bytes=all_stored_bytes(path))


def straight_alpha(folder: Path) -> Sample:
    random = np.random.default_rng(4)
    rgb = picture(139, 205, 4)
    alpha = np.where(random.random((139, 205)) < 0.5, 255, random.integers(0, 256, (139, 205))).astype(np.uint8)
    alpha[:48, :64] = 0
    path = write_tiff(
        folder / "alpha.tif",
        [np.dstack([rgb, alpha])],
        photometric="rgb",
        extrasamples=["unassalpha"],
        compression="packbits",
    )
    share = alpha[:, :, None] / 255.0
    over = np.rint(np.clip(rgb * share + (1 - share) * 255.0, 0, 255)).astype(np.uint8)
    return Sample(path, [over], [alpha > 0], stored_bytes=all_stored_bytes(path))


def bare_strips(folder: Path) -> Sample:
    level = picture(560, 600, 5)
    path = folder / "bare.tif"
    with tifffile.TiffWriter(path, byteorder=">") as tif:
        samples = level.astype(np.uint16) * 257
        tif.write(
            samples,
            photometric="rgb",
            rowsperstrip=24,
            metadata=None,
            extratags=[(340, "H", 1, 0), (341, "H", 1, 65_535)],
        )
    return Sample(path, [level], stored_bytes=level.size * 2)


WRITERS = [jpeg_pyramid, sparse_sub_ifds, strips, bare_strips, sixteen_bit_planes, straight_alpha]


class TestTiff(PyramidContract):
    @pytest.fixture(params=WRITERS, ids=lambda writer: writer.__name__)
    def sample(self, request: pytest.FixtureRequest, tmp_path: Path) -> Sample:
        writer: Callable[[Path], Sample] = request.param
        sample = writer(tmp_path)
        sample.damaged = damaged_copy(sample.path)
        return sample


def whole(pyramid: Pyramid, level: int = 0) -> NDArray[np.uint8]:
    at = pyramid.levels[level]
    return pyramid.read(Region(0, 0, pyramid.width, pyramid.height), (at.width, at.height)).pixels


LOSSLESS = {
    "none": {"compression": None},
    "lzw": {"compression": "lzw"},
    "lzw with predictor": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "deflate"},
    "zstd": {"compression": "zstd"},
    "lzma": {"compression": "lzma"},
    "packbits": {"compression": "packbits"},
    "webp": {"compression": "webp", "compressionargs": {"lossless": True}},
    "jpeg2000": {"compression": "jpeg2000", "compressionargs": {"reversible": True}},
    "jpeg xl": {"compression": "jpegxl", "compressionargs": {"lossless": True}},
    "jpeg xl in strips": {
        "compression": "jpegxl",
        "compressionargs": {"lossless": True},
        "tile": None,
        "rowsperstrip": 40,
    },
    "lerc": {"compression": "lerc"},
    "lerc in deflate": {"compression": "lerc", "compressionargs": {"compression": "deflate"}},
    "lerc in zstd": {"compression": "lerc", "compressionargs": {"compression": "zstd"}},
    "big tiff": {"compression": "deflate", "bigtiff": True},
    "strips": {"compression": "deflate", "tile": None, "rowsperstrip": 40},
    "one strip": {"compression": None, "tile": None},
}


@pytest.mark.parametrize("options", LOSSLESS.values(), ids=LOSSLESS)
def test_lossless_codecs_give_what_was_written(options: dict[str, Any], tmp_path: Path) -> None:
    levels = halvings_of(picture(150, 211), 1)
    path = write_tiff(tmp_path / "a.tif", levels, photometric="rgb", **options)
    with open_pyramid(path) as pyramid:
        assert pyramid.backend == "tiff"
        for index, level in enumerate(levels):
            np.testing.assert_array_equal(whole(pyramid, index), level)
        assert pyramid.cost.bytes_read == all_stored_bytes(path)


JPEG_KINDS = {
    "ycbcr 4:4:4": ("ycbcr", "YCBCR", "444", (1, 1)),
    "ycbcr 4:2:2": ("ycbcr", "YCBCR", "422", (2, 1)),
    "ycbcr 4:2:0": ("ycbcr", "YCBCR", "420", (2, 2)),
    "ycbcr 4:4:0": ("ycbcr", "YCBCR", "440", (1, 1)),
    "ycbcr 4:1:1": ("ycbcr", "YCBCR", "411", (4, 1)),
    "ycbcr 4:2:0 with a wrong tag": ("ycbcr", "YCBCR", "420", (1, 1)),
    "rgb": ("rgb", "RGB", "444", (1, 1)),
}


def write_jpeg_tiles(path: Path, pixels: NDArray[np.uint8], kind: tuple[str, str, str, tuple[int, int]]) -> Path:
    photometric, space, subsampling, tag = kind

    def tiles() -> Any:
        for y in range(0, pixels.shape[0], 64):
            for x in range(0, pixels.shape[1], 64):
                tile = np.ascontiguousarray(pixels[y : y + 64, x : x + 64])
                yield imagecodecs.jpeg8_encode(
                    tile, level=80, colorspace="RGB", outcolorspace=space, subsampling=subsampling
                )

    with tifffile.TiffWriter(path) as tif:
        tif.write(
            tiles(), shape=pixels.shape, dtype="u1", tile=(64, 64), photometric=photometric, compression="jpeg",
            subsampling=tag, metadata=None, software=False,
        )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["PhotometricInterpretation"].overwrite(2 if photometric == "rgb" else 6)
    return path


@pytest.mark.parametrize("kind", JPEG_KINDS.values(), ids=JPEG_KINDS)
def test_jpeg_is_bit_equal_to_openslide(kind: tuple[str, str, str, tuple[int, int]], tmp_path: Path) -> None:
    path = write_jpeg_tiles(tmp_path / "a.tif", picture(192, 256), kind)
    with openslide.OpenSlide(path) as slide, open_pyramid(path) as pyramid:
        assert (pyramid.backend, pyramid.levels[0].tile_width) == ("tiff", 64)
        truth = np.asarray(slide.read_region((0, 0), 0, (256, 192)))
        assert (truth[..., 3] == 255).all()
        np.testing.assert_array_equal(whole(pyramid), truth[..., :3])


def test_jpeg_ycbcr_that_calls_itself_rgb_is_read_right(tmp_path: Path) -> None:
    pixels = picture(192, 256)
    right = write_jpeg_tiles(tmp_path / "right.tif", pixels, ("ycbcr", "YCBCR", "420", (2, 2)))
    wrong = write_jpeg_tiles(tmp_path / "wrong.tif", pixels, ("rgb", "YCBCR", "420", (2, 2)))
    with open_pyramid(right) as first, open_pyramid(wrong) as second:
        np.testing.assert_array_equal(whole(first), whole(second))


def gray_of(tmp_path: Path, pixels: NDArray[Any], **options: Any) -> NDArray[np.uint8]:
    path = write_tiff(tmp_path / "gray.tif", [pixels], **options)
    with open_pyramid(path, channels=1) as gray, open_pyramid(path) as rgb:
        one, three = whole(gray), whole(rgb)
    np.testing.assert_array_equal(np.repeat(one, 3, axis=-1), three)
    return one[:, :, 0]


def test_gray_and_white_as_zero(tmp_path: Path) -> None:
    gray = picture(100, 130)[..., 1]
    np.testing.assert_array_equal(gray_of(tmp_path, gray, photometric="minisblack"), gray)
    np.testing.assert_array_equal(gray_of(tmp_path, gray, photometric="miniswhite"), 255 - gray)
    jpeg = gray_of(tmp_path, gray, photometric="minisblack", compression="jpeg")
    np.testing.assert_array_equal(jpeg, decoded_levels(tmp_path / "gray.tif")[0])
    np.testing.assert_array_equal(gray_of(tmp_path, gray > 99, photometric="minisblack"), (gray > 99) * 255)
    np.testing.assert_array_equal(gray_of(tmp_path, gray > 99, photometric="miniswhite"), (gray <= 99) * 255)
    np.testing.assert_array_equal(
        gray_of(tmp_path, gray // 16, photometric="minisblack", bitspersample=4), gray // 16 * 17
    )


def test_palette_and_inks(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    indices, colors = picture(100, 130)[..., 0], random.integers(0, 65536, (3, 256)).astype(np.uint16)
    path = write_tiff(tmp_path / "palette.tif", [indices], photometric="palette", colormap=colors)
    with open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(whole(pyramid), (colors >> 8).astype(np.uint8).T[indices])
    inks = random.integers(0, 256, (100, 130, 4)).astype(np.uint8)
    path = write_tiff(tmp_path / "inks.tif", [inks], photometric="separated")
    light = 255.0 - inks
    with open_pyramid(path) as pyramid:
        assert np.abs(whole(pyramid) - light[..., :3] * light[..., 3:] / 255).max() <= 0.5 + 1e-9


def test_above_eight_bits_a_window_decides(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(200, 4000, (100, 130)).astype(np.uint16)
    path = write_tiff(tmp_path / "wide.tif", [values, values[::2, ::2]], photometric="minisblack", compression="zstd")
    low, high = np.percentile(values[::2, ::2], [0.1, 99.9])
    with open_pyramid(path) as pyramid:
        assert pyramid.pixel_rule.window == pytest.approx((low, high))
        assert pyramid.cost.tiles_decoded == pyramid.levels[1].columns * pyramid.levels[1].rows, "counted"
        expected = np.rint(np.clip((values - low) * 255 / (high - low), 0, 255))
        np.testing.assert_array_equal(whole(pyramid)[:, :, 0], expected)
    with open_pyramid(path, window=(0, 65535)) as pyramid:
        np.testing.assert_array_equal(whole(pyramid)[:, :, 0], np.rint(values * (255 / 65535)))
        assert pyramid.cost.tiles_decoded <= len(pyramid.levels) * 9
    floats = (values / 4000).astype(np.float32)
    floats[:5] = np.nan
    path = write_tiff(tmp_path / "floats.tif", [floats], photometric="minisblack", predictor=3, compression="deflate")
    with open_pyramid(path, window=(0, 1)) as pyramid:
        np.testing.assert_array_equal(whole(pyramid)[5:, :, 0], np.rint(floats[5:].astype(np.float64) * 255))
        assert not whole(pyramid)[:5].any()
    with open_pyramid(write_tiff(tmp_path / "flat.tif", [np.full((64, 64), 77, np.uint16)])) as pyramid:
        assert (whole(pyramid) == 0).all(), "nothing to stretch: the type's range"


def test_many_channels_take_the_first_three_or_the_chosen(tmp_path: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (5, 100, 130)).astype(np.uint8)
    path = write_tiff(tmp_path / "five.tif", [planes], photometric="minisblack", planarconfig="separate")
    with open_pyramid(path) as pyramid, open_pyramid(path, channels=(4, 0, 2)) as chosen:
        np.testing.assert_array_equal(whole(pyramid), planes[:3].transpose(1, 2, 0))
        np.testing.assert_array_equal(whole(chosen), planes[[4, 0, 2]].transpose(1, 2, 0))
        assert pyramid.cost.bytes_read == all_stored_bytes(path) * 3 // 5, "only what the model sees is read"
    path = write_tiff(tmp_path / "two.tif", [planes[:2]], photometric="minisblack", planarconfig="separate")
    with pytest.raises(PyramidError, match="two channels, which make no gray and no RGB; say which"):
        open_pyramid(path)
    with open_pyramid(path, channels=(1,)) as pyramid:
        np.testing.assert_array_equal(whole(pyramid)[:, :, 0], planes[1])


def test_the_window_is_of_the_channels_that_the_model_sees(tmp_path: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 900, (5, 100, 130)).astype(np.uint16)
    planes += np.arange(5, dtype=np.uint16)[:, None, None] * 1000 + 500
    path = write_tiff(tmp_path / "five.tif", [planes], photometric="minisblack", planarconfig="separate")
    for channels, seen in ((3, (0, 1, 2)), ((4, 3, 1), (4, 3, 1)), ((2,), (2,))):
        low, high = np.percentile(planes[list(seen)], [0.1, 99.9])
        with open_pyramid(path, channels=channels) as pyramid:
            assert pyramid.pixel_rule.window == pytest.approx((low, high))


@pytest.mark.parametrize("order", ["CZYX", "ZCYX"])
def test_ome_channels_in_directories_of_their_own_are_one_image(order: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    stack = random.integers(0, 256, (3, 2, 96, 128) if order == "CZYX" else (2, 3, 96, 128)).astype(np.uint8)
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        options: dict[str, Any] = {"tile": (48, 64), "photometric": "minisblack", "compression": "deflate"}
        tif.write(
            stack, subifds=1, metadata={"axes": order, "PhysicalSizeX": 650, "PhysicalSizeXUnit": "nm"}, **options
        )
        tif.write(stack[..., ::2, ::2], subfiletype=1, **options)
    first_plane = stack[:, 0] if order == "CZYX" else stack[0]
    with open_pyramid(path) as pyramid:
        assert (len(pyramid.levels), pyramid.mpp) == (2, pytest.approx(0.65))
        np.testing.assert_array_equal(whole(pyramid), first_plane.transpose(1, 2, 0))
        np.testing.assert_array_equal(whole(pyramid, 1), first_plane[:, ::2, ::2].transpose(1, 2, 0))


def test_levels_in_any_order_and_of_any_ratio(tmp_path: Path) -> None:
    full = picture(512, 512)
    third = np.ascontiguousarray(full[::4, ::4][:127, :126])
    path = write_tiff(tmp_path / "a.tif", [full, third, np.ascontiguousarray(full[::2, ::2])], photometric="rgb")
    with open_pyramid(path) as pyramid:
        assert [level.width for level in pyramid.levels] == [512, 256, 126]
        assert (pyramid.levels[2].downsample_x, pyramid.levels[2].downsample_y) == (512 / 126, 512 / 127)
        # 4.06 in x is too coarse for 4.05, fine enough for 4.07.
        assert pyramid.level_for(Region(0, 0, 405, 405), (100, 100)).index == 1
        assert pyramid.level_for(Region(0, 0, 407, 407), (100, 100)).index == 2


def test_other_images_in_the_file_are_no_levels(tmp_path: Path) -> None:
    full = picture(256, 256)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(full, photometric="rgb", **PLAIN)
        tif.write(picture(64, 128), photometric="rgb", **PLAIN)  # a tiled label of another aspect
        tif.write(picture(64, 64), photometric="rgb", metadata=None, rowsperstrip=16)  # a thumbnail in strips
        tif.write(full[::2, ::2], photometric="rgb", subfiletype=1, **PLAIN)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[3].tags["NewSubfileType"].overwrite(4)  # a mask
    with open_pyramid(path) as pyramid:
        assert [level.width for level in pyramid.levels] == [256]


def test_pages_of_several_sizes_are_no_pyramid(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for side in (40, 80, 40):
            tif.write(picture(side, side), photometric="rgb", metadata=None)
    with open_pyramid(path) as pyramid:
        assert [level.width for level in pyramid.levels] == [40]


@pytest.mark.parametrize(
    ("said", "mpp"),
    [
        ("MPP = 0.2520", 0.252),
        ("MPP = 0,25", 0.25),
        ("MPP = abc", None),
        ("MPP = nan", None),
        ("MPP = 0", None),
        ("MPP = -0.25", None),
        ("MPP = 1e308", None),
        ("AppMag = 40", None),
        ("MPP = 0.25|MPP = 0.5", 0.5),
    ],
)
def test_aperio_mpp_is_believed_where_it_is_plausible(said: str, mpp: float | None, tmp_path: Path) -> None:
    description = f"Aperio Image Library v11.2.1\r\n64x48 (64x48)|{said}"
    path = write_tiff(tmp_path / "a.svs", [picture(48, 64)], photometric="rgb", description=description)
    with open_pyramid(path) as pyramid:
        assert pyramid.mpp == mpp
        assert pyramid.properties["vendor"] == "aperio"
    with open_pyramid(path, mpp=0.7) as pyramid:
        assert pyramid.mpp == 0.7


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [((72, 72), 2, None), ((0, 0), 3, None), ((1, 1), 1, None), ((20_000, 20_000), 3, 0.5)],
)
def test_resolution_tags(resolution: tuple[int, int], unit: int, mpp: float | None, tmp_path: Path) -> None:
    path = write_tiff(
        tmp_path / "a.tif", [picture(48, 64)], photometric="rgb", resolution=resolution, resolutionunit=unit
    )
    with open_pyramid(path) as pyramid:
        assert pyramid.mpp == mpp


def first_ifd_entry(data: bytes, tag: int) -> int:
    """Where a classic little-endian TIFF's first directory has a tag's entry."""
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, at)[0] == tag:
            return at
    raise KeyError(tag)


def with_tag(path: Path, tag: int, *, value: int | None = None, count: int | None = None) -> Path:
    data = bytearray(path.read_bytes())
    at = first_ifd_entry(bytes(data), tag)
    if count is not None:
        struct.pack_into("<I", data, at + 4, count)
    if value is not None:
        struct.pack_into("<HII", data, at + 2, 4, 1, value)
    changed = path.with_name(f"changed-{path.name}")
    changed.write_bytes(data)
    return changed


@pytest.mark.parametrize(
    ("tag", "change", "kind", "said"),
    [
        (322, {"value": 1 << 22}, UnsupportedFormatError, "cannot be read lazily"),
        (322, {"value": 0}, CorruptImageError, "impossible size"),
        (256, {"value": 0}, CorruptImageError, "impossible size"),
        (256, {"value": 2**31 - 1}, CorruptImageError, "its table lists"),
        (324, {"count": 5}, CorruptImageError, "its table lists 5 of"),
        (324, {"count": 2**31}, CorruptImageError, "table|TIFF"),
        (259, {"value": 52479}, UnsupportedFormatError, "compression"),
        (277, {"value": 60_000}, CorruptImageError, "tile column 0"),
        (258, {"value": 77}, PyramidError, "77 bits"),
    ],
)
def test_impossible_tags_are_refused(
    tag: int, change: dict[str, int], kind: type[PyramidError], said: str, tmp_path: Path
) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(139, 205)], photometric="rgb", compression="deflate")
    with pytest.raises(kind, match=said):
        open_pyramid(with_tag(path, tag, **change)).read(Region(0, 0, 9, 9), 9)


def test_broken_chains_of_directories_are_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", halvings_of(picture(139, 205), 1), photometric="rgb", compression="deflate")
    data = bytearray(path.read_bytes())
    start = struct.unpack_from("<I", data, 4)[0]
    pointer = start + 2 + 12 * struct.unpack_from("<H", data, start)[0]
    for target in (start, len(data) + 999):
        struct.pack_into("<I", data, pointer, target)
        path.write_bytes(data)
        with pytest.raises(CorruptImageError, match="chain of directories is broken"):
            open_pyramid(path)
    for length in (8, len(data) // 4, len(data) // 2):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptImageError, match=r"truncated|not a readable TIFF"):
            open_pyramid(path)


def replace_tile(path: Path, tile: bytes) -> Path:
    """Put a tile at the end of the file and let the middle one's entry point there."""
    changed = path.with_name(f"changed-{path.name}")
    changed.write_bytes(path.read_bytes() + tile)
    set_tile(changed, middle_tile(path), count=len(tile), offset=path.stat().st_size)
    return changed


def jpeg_of(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=80, **options))


def sized(stream: bytes, width: int, height: int) -> bytes:
    at = stream.index(b"\xff\xc0")
    return stream[: at + 5] + struct.pack(">HH", height, width) + stream[at + 9 :]


TILE = picture(48, 64, 9)
FOREIGN_TILES = {
    "too small": (jpeg_of(TILE[:24, :32]), "the tile is 32 x 24 pixels, but 64 x 48 are declared"),
    "too large": (jpeg_of(picture(96, 128)), "the tile is 128 x 96 pixels, but 64 x 48 are declared"),
    "a bomb": (sized(jpeg_of(TILE), 65000, 65000), "the tile is 65000 x 65000 pixels"),
    "gray": (jpeg_of(TILE[..., 0]), "has 1 components, but 3 are declared"),
    "no jpeg": (b"\x89PNG\r\n\x1a\n" + bytes(50), "no JPEG stream"),
    "zeros": (bytes(500), "no JPEG stream"),
    "without a frame": (b"\xff\xd8\xff\xd9", "no frame header"),
    "cut short": (jpeg_of(TILE)[:-700], "ValueError"),
}


@pytest.mark.parametrize(("tile", "said"), FOREIGN_TILES.values(), ids=FOREIGN_TILES)
def test_a_tile_that_is_not_what_is_declared_is_an_error(tile: bytes, said: str, tmp_path: Path) -> None:
    path = replace_tile(jpeg_pyramid(tmp_path).path, tile)
    with open_pyramid(path) as pyramid:
        patches = pyramid.read_many([Region(0, 0, 40, 40), Region(70, 50, 40, 40)], 40)
    assert patches.errors[0] is None
    assert said in str(patches.errors[1])


@pytest.mark.parametrize("options", [{"subsampling": "444"}, {"subsampling": "420", "progressive": True}])
def test_a_tile_of_another_legal_kind_is_read(options: dict[str, Any], tmp_path: Path) -> None:
    progressive = options.pop("progressive", False)
    stream = jpeg_of(TILE, outcolorspace="YCBCR", optimize=progressive, **options)
    path = replace_tile(jpeg_pyramid(tmp_path).path, stream)
    with open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(
            pyramid.read(Region(64, 48, 64, 48), (64, 48)).pixels, imagecodecs.jpeg8_decode(stream)
        )


def test_a_tile_that_inflates_without_end_is_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(139, 205)], photometric="rgb", compression="deflate")
    bomb = replace_tile(path, imagecodecs.zlib_encode(bytes(200 << 20)))
    with open_pyramid(bomb) as pyramid, pytest.raises(CorruptImageError, match="level 0, tile column 1, row 1"):
        pyramid.read(Region(100, 70, 4, 4), 4)
    set_tile(path, middle_tile(path), count=4_000_000_000)
    with open_pyramid(path) as pyramid, pytest.raises(CorruptImageError, match="beyond the end of the file"):
        pyramid.read(Region(100, 70, 4, 4), 4)


def test_jpeg_2000_bombs_are_refused_by_their_header(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(139, 205)], photometric="rgb", compression="jpeg2000")
    stream = bytearray(imagecodecs.jpeg2k_encode(TILE))
    at = stream.index(b"\xff\x4f\xff\x51")
    assert jpeg_2000_size(bytes(stream)) == (64, 48)
    struct.pack_into(">II", stream, at + 8, 1 << 20, 1 << 20)
    bomb = replace_tile(path, bytes(stream))
    with open_pyramid(bomb) as pyramid, pytest.raises(CorruptImageError, match="tile is 1048576 x 1048576 pixels"):
        pyramid.read(Region(100, 70, 4, 4), 4)


def test_jpeg_frames(tmp_path: Path) -> None:
    assert read_jpeg_header(jpeg_of(TILE, subsampling="420"))[0] == (64, 48, 3, True)
    assert read_jpeg_header(jpeg_of(TILE, subsampling="444"))[0] == (64, 48, 3, False)
    assert read_jpeg_header(jpeg_of(TILE[..., 0]))[0] == (64, 48, 1, False)
    stream = jpeg_of(TILE)
    assert read_jpeg_header(b"\xff\xd8\xff\xff" + stream[3:])[0] == read_jpeg_header(stream)[0], (
        "fill bytes are skipped"
    )


def test_of_bare_strips_only_the_rectangle_is_read(tmp_path: Path) -> None:
    level = picture(600, 900)
    path = write_tiff(tmp_path / "bare.tif", [level], tile=None, rowsperstrip=100, photometric="rgb")
    with open_pyramid(path) as pyramid:
        assert (pyramid.levels[0].tile_width, pyramid.levels[0].tile_height) == (256, 256)
        read = pyramid.read(Region(600, 300, 120, 90), (120, 90)).pixels
        np.testing.assert_array_equal(read, level[300:390, 600:720])
        assert pyramid.cost.bytes_read == 256 * 256 * 3


@pytest.mark.parametrize("compression", ["jpegxl", "lerc"])
def test_a_stream_of_another_size_than_declared_is_damage(compression: str, tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(144, 192)], photometric="rgb", compression=compression)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["TileLength"].overwrite(32)
        tif.pages[0].tags["ImageLength"].overwrite(96)
    with open_pyramid(path) as pyramid, pytest.raises(CorruptImageError, match="level 0, tile column 0, row 0"):
        pyramid.read(Region(0, 0, 30, 30), 30)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_lerc_of_wide_samples(dtype: type, tmp_path: Path) -> None:
    stored = (picture(100, 130)[..., 0].astype(np.float64) * 200).astype(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, tile=(48, 64), compression="lerc", photometric="minisblack", metadata=None)
    with open_pyramid(path, window=(0, 51_000)) as pyramid:
        expected = np.rint(stored * (255.0 / 51_000)).astype(np.uint8)
        np.testing.assert_array_equal(whole(pyramid)[..., 0], expected)


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width] / 40
    return np.stack([128 + 100 * np.sin(x + c) * np.cos(y) for c in range(3)], -1).astype(np.uint8)


@pytest.mark.parametrize("scale", [2, 3.3, 4, 8, 11.5])
def test_the_decoder_shrinks_tiles_where_it_may(scale: float, tmp_path: Path) -> None:
    path = write_jpeg_tiles(tmp_path / "a.tif", smooth(64 * 9 + 3, 64 * 11 + 5), JPEG_KINDS["ycbcr 4:2:0"])
    regions = [Region(x, y, 20 * scale, 20 * scale) for x, y in ((0, 0), (33.3, 71), (480, 360), (700, 570))]
    with open_pyramid(path) as exact, open_pyramid(path, shrink=True) as shrunk:
        expected = exact.read_many(regions, 20, mask=True)
        read = shrunk.read_many(regions, 20, mask=True)
        assert np.abs(read.pixels.astype(int) - expected.pixels).max() <= 4, "of 255, on a smooth picture"
        np.testing.assert_array_equal(read.valid, expected.valid)
        for region, pixels in zip(regions, read.pixels, strict=True):
            np.testing.assert_array_equal(shrunk.read(region, 20).pixels, pixels)
        factor = 1 << int(np.log2(min(scale, 8)))
        inside = exact.cost.pixels_decoded // factor**2
        assert shrunk.cost.tiles_distinct == exact.cost.tiles_distinct
        # Only where the image ends inside of a shrunk pixel are tiles decoded whole.
        assert inside <= shrunk.cost.pixels_decoded <= inside + 2 * (9 + 11) * 64 * 64
        assert shrunk.cost.pixels_decoded < exact.cost.pixels_decoded
