"""Real files (see their README.md): their sizes, means and resolutions, and pixels as other libraries give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openslide
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from pyrtrav.errors import CorruptImageError, PyramidError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, open_pyramid


class Truth(NamedTuple):
    backend: str
    sizes: tuple[tuple[int, int], ...]
    mpp: float | None
    mean: tuple[float, ...] | None
    """Of level 0, R, G, B, or of all samples."""


def halves(width: int, height: int, count: int) -> tuple[tuple[int, int], ...]:
    return tuple((width >> level, height >> level) for level in range(count))


TRUTHS = {
    "slides/CMU-1-Small-Region.svs": Truth("tiff", ((2220, 2967),), 0.499, (214.011, 194.810, 207.904)),
    "slides/test3-TRITC-2-560.ndpi": Truth("slide", halves(3968, 4864, 7), 0.22817506, (17.590, 0.092, 0.336)),
    "slides/multi_frame_jpeg_camelyon_challenge_image.dcm": Truth(
        "slide", ((1152, 700),), 28.969, (207.298, 192.571, 215.093)
    ),
    "slides/cmu-1-small-region-dicom/level-0-frames-0-30.dcm": Truth(
        "slide",
        (
            (2220, 2967), (1110, 1483), (555, 741), (277, 370), (138, 185), (69, 92), (34, 46), (17, 23), (8, 11),
            (4, 5), (2, 2), (1, 1),
        ),
        0.499,
        (202.092, 131.105, 136.433),
    ),
    "slides/OS-1-detail.ome.tif": Truth("tiff", ((1101, 1101),), 0.2270972, (149.237,)),
    "slides/nist-thresholding-img.ome.tif": Truth("tiff", ((696, 520),), None, None),
    "slides/boxes.tiff": Truth(
        "tiff", ((300, 250), (150, 125), (75, 62), (37, 31)), None, (159.089, 163.509, 191.502)
    ),
    "slides/yb10kx5k.zstd.tiff": Truth("tiff", halves(10_000, 5_000, 5), None, (51, 51, 204)),
    "slides/test_tiled.tif": Truth("tiff", ((1000, 1000),), None, (104.156, 116.644, 111.081)),
    "slides/CMU-1-macro.ome.zarr": Truth("omezarr", halves(1280, 431, 4), None, (179.0495,)),
    "odd/small.svs": Truth("tiff", ((16, 16),), 0.499, None),
    "odd/test_orient3.tif": Truth("tiff", halves(120, 180, 3), None, None),
    "odd/hopper_orientation_6.jpg": Truth("raster", ((128, 128), (64, 64)), None, None),
    "odd/tiff_tiled_cmyk_jpeg.tif": Truth("tiff", ((100, 100),), None, (30.232, 5.443, 7.381)),
    "odd/tiff_tiled_ycbcr_jpeg_2x2_sampling.tif": Truth("tiff", ((480, 360),), None, (119.304, 131.989, 94.112)),
    "odd/16bit.cropped.tif": Truth("tiff", ((64, 64),), None, None),
    "odd/hopper_bigtiff.tif": Truth("tiff", ((128, 128),), None, (88.391,)),
    "odd/multipage.tiff": Truth("tiff", ((10, 10),), None, None),
    "odd/sm_image.dcm": Truth("slide", ((50, 50),), 0.499, (243.909, 243.888, 243.886)),
    "photos/DJI_0029.JPG": Truth(
        "raster",
        ((4000, 2250), (2000, 1125), (1000, 563), (500, 282), (250, 141), (125, 71), (63, 36)),
        None,
        (113.748, 123.429, 97.111),
    ),
    "textures/grass.png": Truth("raster", halves(512, 512, 4), None, (118.224,)),
}  # fmt: skip


def whole(pyramid: Pyramid, level: int = 0) -> NDArray[np.uint8]:
    at = pyramid.levels[level]
    return pyramid.read(Region(0, 0, pyramid.width, pyramid.height), (at.width, at.height)).pixels


@pytest.mark.parametrize("name", TRUTHS)
def test_sizes_means_and_resolutions(name: str, data: Path) -> None:
    truth = TRUTHS[name]
    with open_pyramid(data / name) as pyramid:
        assert pyramid.backend == truth.backend
        assert tuple((level.width, level.height) for level in pyramid.levels) == truth.sizes
        assert pyramid.mpp == (None if truth.mpp is None else pytest.approx(truth.mpp, rel=1e-5))
        if truth.mean is not None:
            pixels = whole(pyramid)
            mean = pixels.mean((0, 1)) if len(truth.mean) == 3 else [pixels.mean()]
            np.testing.assert_allclose(mean, truth.mean, atol=0.03)


REFUSED = {
    "odd/unreadable.svs": (CorruptImageError, "level 0, tile column 0, row 0"),
    "odd/unopenable.tiff": (UnsupportedFormatError, r"its compression \(52479\) is not supported"),
    "odd/crash-2020-10-test.tif": (CorruptImageError, "chain of directories is broken"),
    "odd/truncated_jpeg.jpg": (CorruptImageError, "level 0, tile column 0, row 0: OSError: image file is truncated"),
    "odd/broken.png": (UnsupportedFormatError, "Pillow does not know this format"),
    "odd/seek_too_large.tif": (CorruptImageError, "may be truncated"),
    "odd/small_la.tiff": (PyramidError, "two channels, which make no gray and no RGB"),
    "scenes/labels.csv": (UnsupportedFormatError, "its content is text"),
    "mnist/t10k-labels-idx1-ubyte.gz": (UnsupportedFormatError, "no reader can open it"),
    "cifar10/test-00.jxl": (UnsupportedFormatError, "no reader can open it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named(name: str, data: Path) -> None:
    kind, said = REFUSED[name]
    with pytest.raises(kind, match=said), open_pyramid(data / name) as pyramid:
        pyramid.read(Region(0, 0, 16, 16), 16)


@pytest.mark.parametrize(
    "name", ["slides/CMU-1-Small-Region.svs", "slides/test_tiled.tif", "odd/tiff_tiled_ycbcr_jpeg_2x2_sampling.tif"]
)
def test_jpeg_tiles_are_bit_equal_to_openslide(name: str, data: Path) -> None:
    with openslide.OpenSlide(data / name) as slide, open_pyramid(data / name) as pyramid:
        random = np.random.default_rng(0)
        for _ in range(12):
            x, y = (int(random.integers(0, side - 100)) for side in slide.dimensions)
            truth = np.asarray(slide.read_region((x, y), 0, (100, 90)))[..., :3]
            np.testing.assert_array_equal(pyramid.read(Region(x, y, 100, 90), (100, 90)).pixels, truth)


@pytest.mark.parametrize("level", range(4))
def test_levels_of_any_ratio_are_the_stored_ones(level: int, data: Path) -> None:
    path = data / "slides" / "boxes.tiff"
    with tifffile.TiffFile(path) as tif, open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(whole(pyramid, level), tif.pages[level].asarray())


@pytest.mark.parametrize("level", range(4))
def test_ome_zarr_equals_zarr_python(level: int, data: Path) -> None:
    path = data / "slides" / "CMU-1-macro.ome.zarr"
    array: Any = zarr.open_group(path, mode="r")[str(level)]
    with open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(whole(pyramid, level), np.moveaxis(array[0, :, 0], 0, -1))
        chunks = [file for file in (path / str(level)).rglob("[0-9]") if file.is_file()]
        assert pyramid.cost.bytes_read == sum(chunk.stat().st_size for chunk in chunks)


def test_a_slide_and_its_macro_are_the_same_pixels(data: Path) -> None:
    with openslide.OpenSlide(data / "slides" / "CMU-1-Small-Region.svs") as slide:
        macro = np.asarray(slide.associated_images["macro"].convert("RGB"))
    with open_pyramid(data / "slides" / "CMU-1-macro.ome.zarr") as pyramid:
        np.testing.assert_array_equal(whole(pyramid), macro)


def test_an_ome_tiff_that_calls_ycbcr_rgb(data: Path) -> None:
    path = data / "slides" / "OS-1-detail.ome.tif"
    with open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(whole(pyramid), tifffile.imread(path))


def test_sixteen_bits_are_stretched(data: Path) -> None:
    for name in (
        "slides/nist-thresholding-img.ome.tif",
        "odd/16bit.cropped.tif",
        "odd/tiff_tiled_planar_16bit_RGB.tiff",
    ):
        values = tifffile.imread(data / name).astype(np.float64)
        values = np.moveaxis(values, 0, -1) if values.ndim == 3 else values[:, :, None]
        low, high = np.percentile(values, [0.1, 99.9])
        with open_pyramid(data / name) as pyramid:
            assert pyramid.pixel_rule.window == pytest.approx((low, high))
            expected = np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255))
            np.testing.assert_array_equal(whole(pyramid), np.broadcast_to(expected, (*values.shape[:2], 3)))


def test_two_colours_stay_two(data: Path) -> None:
    with open_pyramid(data / "slides" / "yb10kx5k.zstd.tiff") as pyramid:
        assert len(np.unique(whole(pyramid, 3).reshape(-1, 3), axis=0)) == 2
        glance = pyramid.read(Region(0, -2500, 10_000, 10_000), 100, mask=True)
        assert glance.valid is not None
        assert glance.valid.sum() == 100 * 50
        assert (glance.pixels[~glance.valid] == 255).all()
        assert pyramid.cost.tiles_distinct <= 12


def test_flat_pictures_equal_pillow(data: Path) -> None:
    for path in (
        data / "photos" / "DJI_0029.JPG",
        data / "textures" / "grass.png",
        data / "odd" / "hopper_bigtiff.tif",
    ):
        with Image.open(path) as image, open_pyramid(path) as pyramid:
            np.testing.assert_array_equal(whole(pyramid), np.asarray(image.convert("RGB")))


def test_one_bit_is_nearly_what_pillow_reads(data: Path) -> None:
    """Pillow turns it as its tag says; the reader of TIFFs does not."""
    path = data / "odd" / "crash-74d2a78403a5a59db1fb0a2b8735ac068a75f6e3.tif"
    with Image.open(path) as image, open_pyramid(path, channels=1) as pyramid:
        turned = np.asarray(image.convert("L"))
        assert (turned.shape, pyramid.properties["orientation"]) == ((88, 590), "8")
        # Its fax code is damaged, and the two decoders resume at different places.
        assert (np.rot90(whole(pyramid)[:, :, 0]) == turned).mean() > 0.95
