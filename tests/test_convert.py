"""Large flat images: converted once to a tiled pyramid, whose pixels are the file's."""

from __future__ import annotations

import io
import json
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
import pyvips
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pyrtrav.cli import main
from pyrtrav.errors import ConfigError, CorruptImageError, PyramidError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.pyramid.convert import convert
from pyrtrav.pyramid.flat import check_size, read_header
from pyrtrav.pyramid.inspect import claims
from pyrtrav.pyramid.limits import cache_dir
from pyrtrav.pyramid.vips import _compare, _decoded, tiled_sizes, write_pyramid
from tests.contracts.pyramid import picture


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache directory of the test's own, and a limit that makes its images large."""
    monkeypatch.setenv("PYRTRAV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYRTRAV_WHOLE_PIXELS", "20000")
    yield tmp_path / "cache"
    assert not list((tmp_path / "cache").glob(".*")), "nothing half-written stays"


def whole(pyramid: Pyramid, level: int = 0) -> NDArray[np.uint8]:
    found = pyramid.levels[level]
    return pyramid.read(Region(0, 0, pyramid.width, pyramid.height), (found.width, found.height)).pixels


def box_means(pixels: NDArray[np.uint8], count: int) -> list[NDArray[np.float64]]:
    """The exact means of 2 x 2, 4 x 4, ... pixels; at an odd edge the last ones are repeated."""
    levels = [pixels.astype(np.float64)]
    for _ in range(count - 1):
        image = levels[-1]
        image = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), "edge")
        levels.append((image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4)
    return levels


def converted_here(pyramid: Pyramid) -> Pyramid:
    """Convert in this process, which is quicker than to start another; the pyramid finds it made."""
    file = Path(pyramid.properties["converted"].removesuffix(" (made when first needed)"))
    file.parent.mkdir(exist_ok=True)
    write_pyramid(pyramid.path, str(file))
    return pyramid


# The pixels.


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


RGB = picture(301, 523)
IMAGES: dict[str, Callable[[Path], Path]] = {
    "png": lambda p: saved(Image.fromarray(RGB), p / "a.png"),
    "png gray": lambda p: saved(Image.fromarray(RGB[..., 0]), p / "a.png"),
    "png 1 bit": lambda p: saved(Image.fromarray(RGB[..., 0] > 120), p / "a.png"),
    "png 2 bits": lambda p: saved(Image.fromarray(RGB).quantize(4), p / "a.png", bits=2),
    "png palette": lambda p: saved(Image.fromarray(RGB).quantize(90), p / "a.png"),
    "png palette with a transparent colour": lambda p: saved(
        Image.fromarray(RGB).quantize(90), p / "a.png", transparency=3
    ),
    "png with a transparent colour": lambda p: saved(
        Image.fromarray(RGB), p / "a.png", transparency=tuple(map(int, RGB[5, 5]))
    ),
    "png gray with a transparent value": lambda p: saved(Image.fromarray(RGB[..., 0]), p / "a.png", transparency=99),
    "png with alpha": lambda p: saved(Image.fromarray(np.dstack([RGB, RGB[..., 0]])), p / "a.png"),
    "png gray with alpha": lambda p: saved(Image.fromarray(RGB[..., :2], "LA"), p / "a.png"),
    "png interlaced": lambda p: interlaced(p / "a.png"),
    "png turned": lambda p: saved(Image.fromarray(RGB), p / "a.png", exif=orientation(6)),
    "jpeg": lambda p: saved(Image.fromarray(RGB), p / "a.jpg"),
    "jpeg gray": lambda p: saved(Image.fromarray(RGB[..., 1]), p / "a.jpg"),
    "jpeg progressive": lambda p: saved(Image.fromarray(RGB), p / "a.jpg", progressive=True),
    "jpeg cmyk": lambda p: saved(Image.fromarray(RGB).convert("CMYK"), p / "a.jpg"),
    "webp": lambda p: saved(Image.fromarray(RGB), p / "a.webp", lossless=True),
    "bmp": lambda p: saved(Image.fromarray(RGB), p / "a.bmp"),
}  # fmt: skip


def interlaced(path: Path) -> Path:
    pyvips.Image.new_from_memory(RGB.tobytes(), 523, 301, 3, "uchar").pngsave(str(path), interlace=True)
    assert read_header(str(path)).decode_bytes > 0
    return path


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("kind", IMAGES)
def test_pixels_are_those_of_a_whole_decode(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = IMAGES[kind](tmp_path)
    with monkeypatch.context() as small:
        small.setenv("PYRTRAV_WHOLE_PIXELS", "1000000")
        with open_pyramid(path) as pyramid:
            assert "converted" not in pyramid.properties
            expected = pyramid.read(
                Region(0, 0, pyramid.width, pyramid.height), (pyramid.width, pyramid.height), mask=True
            )
            rule = pyramid.pixel_rule
    with open_pyramid(path) as pyramid:
        assert (pyramid.pixel_rule, pyramid.backend) == (rule, "raster")
        converted_here(pyramid)
        found = pyramid.read(Region(0, 0, pyramid.width, pyramid.height), (pyramid.width, pyramid.height), mask=True)
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        np.testing.assert_array_equal(found.valid, expected.valid)
        assert [(level.width, level.height) for level in pyramid.levels[:3]] == tiled_sizes(
            pyramid.width, pyramid.height
        )
        if rule.samples.alpha == "none":
            for level, mean in enumerate(box_means(expected.pixels, 3)):
                assert np.abs(whole(pyramid, level) - mean).max() <= 1.5  # two roundings


@pytest.mark.parametrize("turn", range(2, 9))
def test_orientation_is_applied(turn: int, tmp_path: Path) -> None:
    path = saved(Image.fromarray(RGB), tmp_path / "a.jpg", exif=orientation(turn))
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    with open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(whole(converted_here(pyramid)), upright)


def sixteen_bits(color: int, samples: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits, which Pillow writes in gray only."""

    def part(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, color, 0, 0, 0)
    parts = part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(("color", "count"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_what_they_are_in_small_files(
    color: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (150, 260, count)).astype(np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(sixteen_bits(color, samples))
    window = (1000, 60000)
    with open_pyramid(path, window=window) as large:
        monkeypatch.setenv("PYRTRAV_WHOLE_PIXELS", "1000000")
        with open_pyramid(path, window=window) as small:
            assert large.samples == small.samples
            assert large.samples.dtype == (np.uint16 if color == 0 else np.uint8)
            found = whole(converted_here(large))
            shared_cache().clear()
            np.testing.assert_array_equal(found, whole(small))


TIFFS: dict[str, dict[str, object]] = {
    "rgb": {"photometric": "rgb"},
    "jpeg": {"photometric": "ycbcr", "compression": "jpeg"},
    "planes": {"photometric": "rgb", "planarconfig": "separate"},
    "five planes": {"photometric": "minisblack", "planarconfig": "separate"},
    "float": {"photometric": "minisblack"},
    "bilevel": {"photometric": "minisblack"},
    "zstd": {"photometric": "rgb", "compression": "zstd"},
    "miniswhite": {"photometric": "miniswhite"},
}


@pytest.mark.parametrize("kind", TIFFS)
def test_strips_become_tiles(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = {
        "planes": np.moveaxis(RGB, 2, 0),
        "five planes": np.moveaxis(picture(301, 523)[..., [0, 1, 2, 0, 1]], 2, 0).astype(np.uint16) * 250,
        "float": RGB[..., 0].astype(np.float32) / 255,
        "bilevel": RGB[..., 0] > 120,
        "miniswhite": RGB[..., 0],
    }.get(kind, RGB)
    path = tmp_path / "a.tif"
    options = {"compression": "deflate", "resolution": (20_000, 20_000), "resolutionunit": "centimeter", **TIFFS[kind]}
    tifffile.imwrite(path, pixels, rowsperstrip=16, metadata=None, **options)
    channels = (4, 3, 0) if kind == "five planes" else None
    window = (0, 60_000) if kind == "five planes" else (0, 1) if kind == "float" else None
    with open_pyramid(path, channels=channels, window=window) as large:
        monkeypatch.setenv("PYRTRAV_WHOLE_PIXELS", "1000000")
        with open_pyramid(path, channels=channels, window=window) as small:
            assert "converted" in large.properties
            assert (len(large.levels), len(small.levels)) == (3, 1)
            assert (large.backend, large.mpp) == (small.backend, small.mpp) == ("tiff", 0.5)
            found = whole(converted_here(large))
            shared_cache().clear()
            np.testing.assert_array_equal(found, whole(small))


def test_plain_strips_and_levels_need_no_conversion(tmp_path: Path, folder: Path) -> None:
    tifffile.imwrite(tmp_path / "plain.tif", RGB, rowsperstrip=16, photometric="rgb", metadata=None)
    tifffile.imwrite(tmp_path / "tiles.tif", RGB, tile=(64, 64), photometric="rgb", compression="deflate")
    for name in ("plain.tif", "tiles.tif"):
        with open_pyramid(tmp_path / name) as pyramid:
            np.testing.assert_array_equal(whole(pyramid), RGB)
    assert not folder.exists()


# The glance of a baseline JPEG.


def test_a_glance_at_a_jpeg_converts_nothing(tmp_path: Path, folder: Path) -> None:
    pixels = picture(901, 1203)
    path = saved(Image.fromarray(pixels), tmp_path / "a.jpg", quality=95)
    with open_pyramid(path) as pyramid:
        assert [level.tile_width for level in pyramid.levels] == [256, 256, 256, 151, 76, 38]
        assert pyramid.tiles_total == 5 * 4 + 3 * 2 + 2 * 1 + 1
        glance = whole(pyramid, 3)
        assert not folder.exists()
        cost = pyramid.cost
        assert (cost.tiles_decoded, cost.tiles_distinct, cost.bytes_read) == (1, 1, path.stat().st_size)
        assert cost.pixels_decoded == 151 * 113
        assert np.abs(glance - box_means(pixels, 4)[3]).mean() < 1
        whole(pyramid, 4)
        assert pyramid.cost.tiles_decoded == 1
        with Image.open(path) as image:
            np.testing.assert_array_equal(whole(pyramid), np.asarray(image))
        assert len(list(folder.glob("[0-9a-f]*.tif"))) == 1
        again = whole(pyramid, 3)
    with open_pyramid(path) as pyramid:  # what is in the cache directory changes no pixel
        np.testing.assert_array_equal(whole(pyramid, 3), again)
        np.testing.assert_array_equal(glance, again)


@pytest.mark.parametrize(
    ("turn", "size", "scaled"), [(1, (901, 1203), True), (6, (901, 1203), False), (6, (904, 1200), True)]
)
def test_a_turned_jpeg_is_scaled_in_whole_blocks_only(
    turn: int, size: tuple[int, int], scaled: bool, tmp_path: Path, folder: Path
) -> None:
    pixels = picture(*size)
    path = saved(Image.fromarray(pixels), tmp_path / "a.jpg", quality=95, exif=orientation(turn))
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    with open_pyramid(path) as pyramid:
        glance = whole(pyramid, 3)
        assert np.abs(glance - box_means(upright, 4)[3]).mean() < 1
    assert folder.exists() is not scaled


# Damage, limits, and what must not be left behind.


def damaged(kind: str, folder: Path) -> Path:
    path = folder / ("a.png" if "png" in kind else "a.jpg")
    Image.fromarray(picture(500, 600)).save(path, progressive="progressive" in kind)
    data = bytearray(path.read_bytes())
    if "cut" in kind:
        data = data[: len(data) * 2 // 3]
    else:
        middle = len(data) // 2
        data[middle : middle + 4000] = np.random.default_rng(0).integers(0, 256, 4000, np.uint8).tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["png cut", "jpeg noise", "jpeg progressive cut"])
def test_damage_is_an_error_never_gray(kind: str, tmp_path: Path, folder: Path) -> None:
    path = damaged(kind, tmp_path)
    with open_pyramid(path) as pyramid:
        for level in (0, 3 if kind == "jpeg noise" else 2):  # of the baseline JPEG both ways to read it
            with pytest.raises(CorruptImageError, match=rf"level {level}, tile column 0, row 0") as caught:
                pyramid.read(Region(0, 0, 64, 64), (64 >> level, 64 >> level))
            assert caught.value.path == str(path)
    assert not list(folder.glob("[0-9a-f]*.tif"))


def test_a_damaged_strip_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, rowsperstrip=16, photometric="ycbcr", compression="jpeg", metadata=None)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages.first.dataoffsets[5], tif.pages.first.databytecounts[5]
    data = bytearray(path.read_bytes())
    data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    path.write_bytes(data)
    with open_pyramid(path) as pyramid, pytest.raises(CorruptImageError, match="level 0, tile column 0"):
        pyramid.read(Region(0, 0, 64, 64), 64)


def png_header(width: int, height: int, raw: bytes | None = None) -> bytes:
    def part(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", header)
        + part(b"IDAT", raw or zlib.compress(bytes(1000)))
        + part(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_001, 60_000, 70_000, 2**31 - 1])
def test_large_headers_are_refused_without_a_warning(side: int, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header(side, side))
    said = "set PYRTRAV_MAX_PIXELS to more" if side > 2**16 else "it is truncated or forged"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PyramidError, match=rf"{side:,} x {side:,} pixels .*{said}"):
            open_pyramid(path)


def test_what_a_header_declares_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_header(100_000, 100_000))
    with pytest.raises(UnsupportedFormatError, match=r"100,000 x 100,000 pixels .* set PYRTRAV_MAX_PIXELS"):
        open_pyramid(path)
    assert claims(path)
    monkeypatch.setenv("PYRTRAV_MAX_PIXELS", str(10**11))
    with pytest.raises(CorruptImageError, match="cannot hold the 100,000 x 100,000 pixels"):
        open_pyramid(path)
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "JPEG")
    data = bytearray(stream.getvalue())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    path.write_bytes(data)
    with pytest.raises(CorruptImageError, match="cannot hold the 65,500 x 65,500"):
        open_pyramid(path)


@pytest.mark.parametrize("kind", ["L", "RGB", "1", "P"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "progressive"])
def test_what_compresses_best_is_not_refused(kind: str, format: str, tmp_path: Path) -> None:
    image = Image.new(kind, (3000, 2000))
    if format != "PNG":
        image = image.convert("L" if kind in "1L" else "RGB")
    path = tmp_path / "a"
    options = {"optimize": True, "progressive": format == "progressive", "quality": 1}
    image.save(path, "PNG" if format == "PNG" else "JPEG", **options)
    check_size(str(path), read_header(str(path)))


def test_memory_is_limited_where_a_decoder_needs_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRTRAV_CONVERT_BYTES", "300000")
    path = saved(Image.fromarray(RGB), tmp_path / "a.jpg", progressive=True)
    assert read_header(str(path)).decode_bytes == RGB.size  # 4:2:0: two bytes for each of 1.5 coefficients a pixel
    with pytest.raises(UnsupportedFormatError, match=r"progressive JPEG .* set PYRTRAV_CONVERT_BYTES"):
        open_pyramid(path)
    with pytest.raises(UnsupportedFormatError, match="WEBP"):
        open_pyramid(saved(Image.fromarray(RGB), tmp_path / "a.webp"))
    with open_pyramid(saved(Image.fromarray(RGB), tmp_path / "b.jpg")) as pyramid:
        whole(pyramid)
    monkeypatch.setenv("PYRTRAV_CONVERT_BYTES", "many")
    with pytest.raises(ConfigError, match="PYRTRAV_CONVERT_BYTES is a whole number"):
        open_pyramid(path)


# Processes, the cache directory, the disk.

READ = """
import resource, sys
import numpy as np
from pyrtrav.errors import PyramidError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import open_pyramid
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    with open_pyramid(sys.argv[1]) as pyramid:
        print(pyramid.read(Region(0, 0, 640, 480), (640, 480)).pixels.astype(int).sum())
except PyramidError as error:
    print(error)
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # getrusage tells the parent's too
print(own.split()[1], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def reading(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READ, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_convert_once(tmp_path: Path, folder: Path) -> None:
    pixels = picture(480, 640)
    path = saved(Image.fromarray(pixels), tmp_path / "a.png")
    found = [process.communicate(timeout=60) for process in [reading(path), reading(path)]]
    assert [out.splitlines()[0] for out, _ in found] == [str(pixels.astype(int).sum())] * 2
    assert sorted("converting it once" in err for _, err in found) == [False, True]
    assert len(list(folder.glob("[0-9a-f]*.tif"))) == 1


def test_what_a_killed_process_left_is_removed(tmp_path: Path, folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), np.uint8)  # long enough to be caught at it
    path = saved(Image.fromarray(pixels), tmp_path / "a.png", compress_level=0)
    victim = reading(path)
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size for part in folder.glob(".*.tif.*")):
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not list(folder.glob("[0-9a-f]*.tif"))
    other = folder / f".{'9' * 32}.tif.left.tif"  # of another image
    other.touch()
    with open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(whole(pyramid), pixels)
    assert len(list(folder.glob("[0-9a-f]*.tif"))) == 1
    time.sleep(0.3)  # the killed one's converter has ended too: the fixture finds nothing half-written


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    path = saved(Image.fromarray(picture(480, 640)), tmp_path / "a.png")
    out, _ = reading(path, 100_000).communicate(timeout=60)
    assert "set PYRTRAV_CACHE_DIR to a folder with more space" in out
    assert not list(folder.glob("[0-9a-f]*.tif"))


def test_memory_is_bounded(tmp_path: Path) -> None:
    width, height = 9000, 8000
    path = tmp_path / "a.png"
    first = np.repeat(np.arange(width) // 9 % 200, 3).astype(np.uint8)
    packer, rows = zlib.compressobj(1), []
    for row in range(height):
        rows.append(packer.compress(b"\0" + (first + np.uint8(row // 160)).tobytes()))
    path.write_bytes(png_header(width, height, raw=b"".join([*rows, packer.flush()])))
    out, _ = reading(path).communicate(timeout=120)
    total, memory = out.splitlines()
    expected = first[: 3 * 640].astype(int)[None] + np.arange(480)[:, None] // 160
    assert int(total) == expected.sum()
    own, converter = (int(kilobytes) // 1024 for kilobytes in memory.split())
    assert own < 210, "MB, of which nearly all are libraries"
    assert converter < 190, "MB; the image decoded is 216 MB"


def test_the_least_recently_used_are_removed(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [saved(Image.fromarray(picture(301, 523, seed)), tmp_path / f"{seed}.png") for seed in range(3)]
    opened = [open_pyramid(path) for path in paths]
    whole(opened[0])
    size = next(folder.glob("[0-9a-f]*.tif")).stat().st_size
    monkeypatch.setenv("PYRTRAV_CACHE_DIR_BYTES", str(size * 5 // 2))
    for pyramid in (opened[1], open_pyramid(paths[0]), opened[2]):  # the first is used again before the third
        shared_cache().clear()
        whole(pyramid)
    kept = {path.name for path in folder.glob("[0-9a-f]*.tif")}
    assert kept == {Path(opened[i].properties["converted"].split(" ")[0]).name for i in (0, 2)}
    shared_cache().clear()
    for seed, pyramid in enumerate(opened):  # an open one keeps its file
        np.testing.assert_array_equal(whole(pyramid), picture(301, 523, seed))
        pyramid.close()


def test_a_damaged_pyramid_in_the_cache_directory(tmp_path: Path, folder: Path) -> None:
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    with open_pyramid(path) as pyramid:
        expected = whole(pyramid)
    shared_cache().clear()
    file = next(folder.glob("[0-9a-f]*.tif"))
    with tifffile.TiffFile(file) as tif:
        offset = tif.pages.first.dataoffsets[0]
    data = bytearray(file.read_bytes())
    data[offset : offset + 100] = bytes(100)
    file.write_bytes(data)
    with open_pyramid(path) as pyramid:
        with pytest.raises(CorruptImageError, match=rf"converted pyramid is damaged, delete {file}"):
            whole(pyramid)
    file.write_bytes(data[:100])
    with open_pyramid(path) as pyramid:  # no pyramid at all: it is made again
        np.testing.assert_array_equal(whole(pyramid), expected)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYRTRAV_CACHE_DIR", str(tmp_path / "file"))
    with open_pyramid(path) as pyramid, pytest.raises(PyramidError, match="set PYRTRAV_CACHE_DIR"):
        whole(pyramid)
    monkeypatch.delenv("PYRTRAV_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "pyrtrav"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "pyrtrav"


# The function and the command.


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_convert_writes_a_pyramid_that_others_read(kind: str, tmp_path: Path, folder: Path) -> None:
    path, out = tmp_path / f"a.{kind}", tmp_path / "out.tif"
    if kind == "png":
        Image.fromarray(RGB).save(path)
    else:
        tifffile.imwrite(path, RGB, tile=(64, 64), photometric="rgb", resolution=(2e4, 2e4), resolutionunit=3)
    convert(path, out)
    with open_pyramid(out) as pyramid:
        assert (pyramid.backend, pyramid.mpp) == ("tiff", 0.5 if kind == "tif" else None)
        assert [(level.width, level.height) for level in pyramid.levels] == tiled_sizes(523, 301)
        np.testing.assert_array_equal(whole(pyramid), RGB)
    with openslide.OpenSlide(out) as slide:
        assert slide.level_dimensions == tuple(tiled_sizes(523, 301))
        np.testing.assert_array_equal(np.asarray(slide.read_region((0, 0), 0, (523, 301)))[..., :3], RGB)
    assert not folder.exists()


ZARRED: dict[str, Callable[[Path], NDArray[np.generic]]] = {
    "rgb png": lambda p: _written(p, RGB, ".png"),
    "gray 16-bit tif": lambda p: _written(p, RGB[..., 0].astype(np.uint16) * 257, ".tif"),
    "float tif": lambda p: _written(p, np.where(RGB[..., 0] > 250, np.nan, RGB[..., 0] / 7).astype("f4"), ".tif"),
    "black png": lambda p: _written(p, np.zeros((600, 1100), np.uint8), ".png"),
}


def _written(folder: Path, pixels: NDArray[np.generic], suffix: str) -> NDArray[np.generic]:
    if suffix == ".png":
        Image.fromarray(pixels).save(folder / "a.png")
    else:
        tifffile.imwrite(folder / "a.tif", pixels, rowsperstrip=50, resolution=(2e4, 2e4), resolutionunit=3)
    return pixels


@pytest.mark.parametrize("kind", ZARRED)
def test_convert_writes_ome_zarr_that_zarr_reads(kind: str, tmp_path: Path) -> None:
    pixels = ZARRED[kind](tmp_path)
    (path,) = tmp_path.glob("a.*")
    out = tmp_path / "out.ome.zarr"
    told: list[tuple[str, float]] = []
    convert(path, out, report=lambda doing, share: told.append((doing, share)))
    group = zarr.open_group(out, mode="r")
    assert group.metadata.zarr_format == 2
    (multiscale,) = group.attrs["multiscales"]
    assert multiscale["version"] == "0.4"
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "y", "x"]
    first = np.moveaxis(np.asarray(group["0"]), 0, 2)
    np.testing.assert_array_equal(first, pixels.reshape(first.shape))
    sizes = [np.asarray(group[dataset["path"]]).shape[:0:-1] for dataset in multiscale["datasets"]]
    assert sizes == tiled_sizes(pixels.shape[1], pixels.shape[0])
    with open_pyramid(out) as pyramid:
        assert (pyramid.backend, pyramid.width, pyramid.height) == ("omezarr", pixels.shape[1], pixels.shape[0])
        assert pyramid.mpp == (pytest.approx(0.5) if path.suffix == ".tif" else None)
        if "rgb" in kind:
            np.testing.assert_array_equal(whole(pyramid), RGB)
    doings = list(dict.fromkeys(doing for doing, _ in told))
    assert doings == ["writing", "comparing", "writing OME-Zarr", "comparing OME-Zarr"]
    assert told[-1][1] == 1.0
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, "out.ome.zarr"}


def test_transparent_pixels_do_not_go_into_ome_zarr(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.dstack([RGB, RGB[..., 0]])), tmp_path / "a.png")
    with pytest.raises(UnsupportedFormatError, match="transparent"):
        convert(path, tmp_path / "a.ome.zarr")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_what_was_written_is_compared(tmp_path: Path) -> None:
    """One bit of one stored tile is turned over; the tile can be decoded all the same."""
    path, out = saved(Image.fromarray(RGB), tmp_path / "a.png"), tmp_path / "out.tif"
    write_pyramid(str(path), str(out))
    pixels = tifffile.imread(out, key=0)
    tile = pixels[:256, 256:512].astype(np.int16)
    tile = np.pad(tile, ((0, 256 - tile.shape[0]), (0, 256 - tile.shape[1]), (0, 0)), "edge")
    tile[17, 3] ^= 1
    predicted = np.diff(tile, axis=1, prepend=0).astype(np.uint8)
    packed = zlib.compress(predicted.tobytes(), 9)
    with tifffile.TiffFile(out, mode="r+") as tif:
        tags = tif.pages[0].tags
        offsets, counts = list(tags["TileOffsets"].value), list(tags["TileByteCounts"].value)
        offsets[1], counts[1] = out.stat().st_size, len(packed)
        tags["TileOffsets"].overwrite(offsets)
        tags["TileByteCounts"].overwrite(counts)
    with out.open("ab") as file:
        file.write(packed)
    with _decoded(str(path), str(out)) as (image, samples, _), pytest.raises(PyramidError, match="rows 0 to 256"):
        _compare(image, samples, str(out), None)


def converting(path: Path, out: Path) -> subprocess.Popen[str]:
    """A conversion in another process, which has begun to write."""
    call = [sys.executable, "-c", "from pyrtrav.cli import main; main()", "convert", str(path), str(out)]
    running = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while not any(part.is_file() and part.stat().st_size > 100 for part in out.parent.glob(f".{out.name}*")):
        assert running.poll() is None
        assert time.time() < deadline
        time.sleep(0.02)
    return running


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Long enough to be caught at it."""
    pixels = np.random.default_rng(0).integers(0, 256, (4000, 4000, 3), np.uint8)
    return saved(Image.fromarray(pixels), tmp_path / "large.png", compress_level=0)


@pytest.mark.parametrize(
    ("name", "number", "code"),
    [("out.tif", signal.SIGINT, 130), ("out.tif", signal.SIGHUP, 129), ("out.ome.zarr", signal.SIGTERM, 143)],
)
def test_a_stopped_conversion_leaves_nothing(
    name: str, number: signal.Signals, code: int, large: Path, tmp_path: Path
) -> None:
    running = converting(large, tmp_path / name)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == code
    assert said == f"warning: stopped by {number.name}: what was not finished is not kept\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["large.png"]


@pytest.mark.parametrize("name", ["out.tif", "out.ome.zarr"])
def test_what_a_killed_conversion_left_is_removed_by_the_next(name: str, large: Path, tmp_path: Path) -> None:
    running, small = converting(large, tmp_path / name), saved(Image.fromarray(RGB), tmp_path / "a.png")
    others = {f".{name}.tif.abcd1234.tif", f".{name}.other.lock"}
    for other in others:
        (tmp_path / other).touch()
    parts = set(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=f"process {running.pid}"):
        convert(small, tmp_path / name)
    assert parts <= set(tmp_path.iterdir()), "what a living process writes is not touched"
    running.kill()
    running.communicate()
    assert any(part.stat().st_size > 100 for part in tmp_path.glob(f".{name}*")), "it left something"
    convert(small, tmp_path / name)
    assert {entry.name for entry in tmp_path.iterdir()} == {"large.png", "a.png", name, *others}


def test_what_convert_refuses(tmp_path: Path) -> None:
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"ends in .tif"):
        convert(path, tmp_path / "a.svs")
    (tmp_path / "there.zarr").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        convert(path, tmp_path / "there.zarr")
    tifffile.imwrite(tmp_path / "a.tif", RGB)
    with pytest.raises(ConfigError, match="would overwrite the image"):
        convert(tmp_path / "a.tif", tmp_path / "a.tif")
    with pytest.raises(ConfigError, match="cannot be written"):
        convert(path, tmp_path / "none" / "a.tif")
    with pytest.raises(PyramidError, match="no such file"):
        convert(tmp_path / "none.png", tmp_path / "b.tif")
    with pytest.raises(CorruptImageError):
        convert(damaged("png cut", tmp_path), tmp_path / "b.tif")
    assert not list(tmp_path.glob("*b.tif*"))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["pyrtrav", *map(str, words)])
        try:
            main()
            code: object = 0
        except SystemExit as left:
            code = left.code or 0
        return code, *capsys.readouterr()

    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    assert run("convert", path, tmp_path / "a.tif") == (0, f"{tmp_path / 'a.tif'}\n", "")
    code, _, err = run("convert", path, tmp_path / "a.png")
    assert (code, "ends in .tif" in err) == (2, True)
    assert run("convert", tmp_path / "none.png", tmp_path / "a.tif")[0] == 1
    assert "made when first needed" in " ".join(run("info", path)[1].split())
    code, _, err = run("doctor", path)
    assert (code, "converting it once to a tiled pyramid" in err) == (0, True)
    found = json.loads(run("info", path, "--json")[1])["properties"]["converted"]
    assert Path(found).exists()
