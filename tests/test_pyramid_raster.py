"""Flat images: written by Pillow, decoded once, with levels that are plain means."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pyrtrav.errors import CorruptImageError, PyramidError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.array import halve
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.pyramid.cache import TileCache
from pyrtrav.pyramid.raster import RasterPyramid
from tests.contracts.pyramid import PyramidContract, Sample, picture


def slow_halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean of every 2 x 2 pixels, halves up; at an odd edge of the fewer that there are."""
    height, width, channels = pixels.shape
    result = np.zeros((-(-height // 2), -(-width // 2), channels), np.uint8)
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            block = pixels[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1, channels)
            result[row, column] = np.floor(block.mean(0) + 0.5)
    return result


def levels_of(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    levels = [pixels]
    while max(levels[-1].shape[:2]) > 64:
        levels.append(slow_halve(levels[-1]))
    return levels


def cut_in_half(path: Path) -> Path:
    copy = path.with_name(f"damaged-{path.name}")
    data = path.read_bytes()
    copy.write_bytes(data[: len(data) // 2])
    return copy


def png_with_alpha(folder: Path) -> Sample:
    random = np.random.default_rng(0)
    rgb = picture(97, 141)
    alpha = random.choice([0, 70, 255], (97, 141)).astype(np.uint8)
    path = folder / "alpha.png"
    Image.fromarray(np.dstack([rgb, alpha])).save(path)
    share = alpha[:, :, None] / 255.0
    over = np.rint(rgb * share + (1 - share) * 255.0).astype(np.uint8)
    masks = [alpha > 0]
    while max(masks[-1].shape) > 64:
        halves = slow_halve(masks[-1][:, :, None].astype(np.uint8) * 100)[:, :, 0]
        masks.append(halves > 50)
    return Sample(
        path, levels_of(over), masks, stored_bytes=path.stat().st_size, damaged=cut_in_half(path), one_tile=True
    )


def turned_jpeg(folder: Path) -> Sample:
    path = folder / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(141, 97, 1)).save(path, exif=exif, quality=80)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert upright.shape == (97, 141, 3)
    damaged = cut_in_half(path)
    return Sample(path, levels_of(upright), stored_bytes=path.stat().st_size, damaged=damaged, one_tile=True)


class TestRaster(PyramidContract):
    @pytest.fixture(params=[png_with_alpha, turned_jpeg], ids=lambda writer: writer.__name__)
    def sample(self, request: pytest.FixtureRequest, tmp_path: Path) -> Sample:
        writer: Callable[[Path], Sample] = request.param
        return writer(tmp_path)


def whole(pyramid: Pyramid) -> NDArray[np.uint8]:
    return pyramid.read(Region(0, 0, pyramid.width, pyramid.height), (pyramid.width, pyramid.height)).pixels


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (7, 1), (1, 8), (13, 22), (65, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_halving_equals_the_slow_one(shape: tuple[int, int], channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, channels)).astype(np.uint8)
    np.testing.assert_array_equal(halve(pixels), slow_halve(pixels))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_orientation_is_applied(orientation: int, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(30, 44)).save(path, kind, exif=exif, lossless=True)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    with open_pyramid(path) as pyramid:
        assert (pyramid.height, pyramid.width) == upright.shape[:2]
        assert pyramid.properties["orientation"] == f"{orientation} (applied)"
        np.testing.assert_array_equal(whole(pyramid), upright)


MODES = {
    "1": ("PNG", "L"),
    "L": ("BMP", "L"),
    "LA": ("PNG", "LA"),
    "P": ("GIF", "RGB"),
    "RGB": ("PPM", "RGB"),
    "CMYK": ("JPEG", "RGB"),
    "I;16": ("PNG", "I;16"),
    "F": ("TIFF", "F"),
    "YCbCr": ("TIFF", "RGB"),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_pillow(mode: str, tmp_path: Path) -> None:
    kind, shown = MODES[mode]
    pixels = picture(30, 44)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    else:
        image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / "a"
    image.save(path, kind)
    backend = "tiff" if kind == "TIFF" and mode == "F" else "raster"
    with open_pyramid(path, window=(0, 51_000) if mode == "I;16" else (0, 255) if mode == "F" else None) as pyramid:
        assert pyramid.backend == backend
        found = whole(pyramid)
    with Image.open(path) as again:
        truth = np.asarray(again.convert(shown), np.float64)
    if mode == "I;16":
        truth = truth * (255 / 51_000)
    if mode == "LA":
        truth = truth[..., 0]
    np.testing.assert_array_equal(found, np.rint(truth if truth.ndim == 3 else truth[:, :, None].repeat(3, 2)))


@pytest.mark.parametrize("kind", ["P", "RGB", "L"])
def test_a_transparent_colour_is_no_image(kind: str, tmp_path: Path) -> None:
    pixels = np.full((10, 20), 7, np.uint8)
    pixels[:, :10] = 3
    image = Image.fromarray(pixels).convert(kind)
    path = tmp_path / "a.png"
    image.save(path, transparency=(3, 3, 3) if kind == "RGB" else image.getpixel((0, 0)))
    with open_pyramid(path) as pyramid:
        tile = pyramid.read(Region(0, 0, 20, 10), (20, 10), mask=True)
    assert tile.valid is not None
    np.testing.assert_array_equal(tile.valid, pixels == 7)
    assert (tile.pixels[:, :10] == 255).all()


def test_opening_reads_the_header_only_and_decodes_once(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture(300, 200)).save(path)
    with open_pyramid(path) as pyramid:
        assert (pyramid.cost.tiles_decoded, pyramid.cost.bytes_read, pyramid.cost.tiles_total) == (0, 0, 1)
        assert [(level.width, level.height) for level in pyramid.levels] == [(200, 300), (100, 150), (50, 75), (25, 38)]
        pyramid.read(Region(0, 0, 200, 300), (25, 38))
        pyramid.read(Region(0, 0, 50, 50), 50)
        cost = pyramid.cost
        assert (cost.tiles_decoded, cost.tiles_distinct, cost.bytes_read) == (1, 1, path.stat().st_size)
        assert cost.pixels_decoded == 60_000


def test_sixteen_bits_are_stretched_and_decoded_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(300, 2000, (90, 130)).astype(np.uint16)
    path = tmp_path / "a.png"
    Image.fromarray(values).save(path)
    low, high = np.percentile(values, [0.1, 99.9])
    with open_pyramid(path) as pyramid:
        assert pyramid.pixel_rule.window == pytest.approx((low, high))
        expected = np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255))
        np.testing.assert_array_equal(whole(pyramid)[:, :, 0], expected)
        assert (pyramid.cost.tiles_decoded, pyramid.cost.tiles_distinct) == (1, 1)


def test_a_window_is_for_more_than_eight_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture(9, 9)).save(path)
    with open_pyramid(path, window=(500, 9000)) as pyramid:
        np.testing.assert_array_equal(whole(pyramid), picture(9, 9))


def test_an_image_that_no_cache_holds_is_still_decoded_once(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture(300, 200)).save(path)
    pyramid = RasterPyramid(path, cache=TileCache(50_000))
    for _ in range(3):
        pyramid.read(Region(0, 0, 200, 300), (100, 150))
    assert pyramid.cost.tiles_decoded == 1
    pyramid.close()
    assert len(shared_cache()) == 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "JPEG2000", "TIFF"])
def test_files_cut_anywhere_end_in_a_named_error(kind: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture(60, 90)).save(stream, kind)
    data, path = stream.getvalue(), tmp_path / "a"
    for length in sorted({int(len(data) * share) for share in (0.01, 0.05, 0.3, 0.6, 0.9)} | {5, 40}):
        path.write_bytes(data[:length])
        with pytest.raises(PyramidError), open_pyramid(path) as pyramid:
            pyramid.read(Region(0, 0, 90, 60), 30)


def test_damage_is_remembered_by_nobody(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(picture(60, 90)).save(path)
    good = path.read_bytes()
    path.write_bytes(good[:-500])
    with pytest.raises(CorruptImageError, match="level 0, tile column 0, row 0"), open_pyramid(path) as pyramid:
        pyramid.read(Region(0, 0, 9, 9), 9)
    path.write_bytes(good)
    with open_pyramid(path) as pyramid:
        pyramid.read(Region(0, 0, 9, 9), 9)


def test_frames_after_the_first_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    frames = [Image.fromarray(picture(20, 30, seed)) for seed in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with Image.open(path) as image, open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(whole(pyramid), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("large", [False, True])
def test_every_flipped_bit_of_a_png_is_found(large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow alone gives other pixels for some of them, without a word."""
    monkeypatch.setenv("PYRTRAV_CACHE_DIR", str(tmp_path / "cache"))
    if large:
        monkeypatch.setenv("PYRTRAV_WHOLE_PIXELS", "100")
    rows, columns = np.mgrid[:300, :420]
    pixels = np.stack([columns, rows, columns * rows], axis=2).astype(np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    silent = 0
    for place in np.linspace(0, length - 1, 3 if large else 100).astype(int).tolist():
        damaged = bytearray(data)
        damaged[start + place] ^= 4
        path.write_bytes(damaged)
        with suppress(Exception), Image.open(path) as image:
            silent += not np.array_equal(np.asarray(image), pixels)
        with open_pyramid(path) as pyramid, pytest.raises(CorruptImageError, match="checksum"):
            pyramid.read(pyramid.bounds, (420, 300))
    assert silent or large
