"""OpenSlide's formats: real slides, and TIFFs that are forced through it; compared with OpenSlide's own large reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.inspect import claims, companions, fingerprint
from pyrtrav.pyramid.slide import SlidePyramid
from tests.contracts.pyramid import PyramidContract, Sample, halvings_of, picture


def openslide_level(path: Path, level: int) -> NDArray[np.uint8]:
    """A whole level in one read."""
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))


def tiled_tiff(folder: Path) -> Sample:
    path = folder / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for index, level in enumerate(halvings_of(picture(144, 208), 1)):
            tif.write(
                level, photometric="rgb", compression="deflate", tile=(64, 64), subfiletype=index, metadata=None,
                software=False, resolution=(20_000, 20_000), resolutionunit=3,
            )  # fmt: skip
    damaged = folder / "damaged.tif"
    shutil.copy(path, damaged)
    for copy, number in ((damaged, 5), (path, 1)):
        with tifffile.TiffFile(copy, mode="r+") as tif:
            tags = tif.pages[0].tags
            counts, offsets = list(tags["TileByteCounts"].value), list(tags["TileOffsets"].value)
            if copy == damaged:
                counts[number] //= 2
            else:
                counts[number] = offsets[number] = 0  # declared empty
            tags["TileByteCounts"].overwrite(counts)
            tags["TileOffsets"].overwrite(offsets)
    pixels = [openslide_level(path, level) for level in range(2)]
    levels = [np.where(level[..., 3:] > 0, level[..., :3], 255).astype(np.uint8) for level in pixels]
    valid = [level[..., 3] > 0 for level in pixels]
    assert not valid[0][:64, 64:128].any()
    return Sample(path, levels, valid, mpp=0.5, damaged=damaged)


class TestSlideOnTiff(PyramidContract):
    @pytest.fixture
    def sample(self, tmp_path: Path) -> Sample:
        return tiled_tiff(tmp_path)

    @pytest.fixture
    def open_it(self, sample: Sample) -> Callable[..., Pyramid]:
        return lambda path=sample.path, **options: open_pyramid(path, backend="slide", **options)


class TestSlideOnDicom(PyramidContract):
    @pytest.fixture
    def sample(self, data: Path, tmp_path: Path) -> Sample:
        path = data / "slides" / "multi_frame_jpeg_camelyon_challenge_image.dcm"
        damaged = tmp_path / "damaged.dcm"
        content = bytearray(path.read_bytes())
        frames = [at for at in range(len(content)) if content[at : at + 3] == b"\xff\xd8\xff"]
        assert len(frames) == 15
        content[frames[7] + 200 : frames[8] - 50] = bytes(frames[8] - frames[7] - 250)
        damaged.write_bytes(content)
        level = openslide_level(path, 0)
        assert (level[..., 3] == 255).all()
        return Sample(path, [np.ascontiguousarray(level[..., :3])], mpp=28.969, damaged=damaged)


def test_every_level_of_a_real_slide(data: Path) -> None:
    """NDPI: seven levels of which OpenSlide computes three, tiles that are strips, a dark background."""
    path = data / "slides" / "test3-TRITC-2-560.ndpi"
    random = np.random.default_rng(0)
    with openslide.OpenSlide(path) as slide, open_pyramid(path) as pyramid:
        assert (pyramid.backend, pyramid.mpp) == ("slide", pytest.approx(0.22817506))
        assert [(level.width, level.height) for level in pyramid.levels] == list(slide.level_dimensions)
        assert {(level.tile_width, level.tile_height) for level in pyramid.levels} == {(256, 256)}
        for level in pyramid.levels:
            scale = round(level.downsample_x)
            for _ in range(4):
                x, y = int(random.integers(0, level.width)), int(random.integers(0, level.height))
                truth = np.asarray(slide.read_region((x * scale, y * scale), level.index, (90, 70)))
                found = pyramid.read(Region(x * scale, y * scale, 90 * scale, 70 * scale), (90, 70)).pixels
                inside = truth[: level.height - y, : level.width - x, :3]
                np.testing.assert_array_equal(found[: inside.shape[0], : inside.shape[1]], inside)
        assert pyramid.cost.bytes_read is None


def test_a_dicom_series_opens_from_any_of_its_files(data: Path, tmp_path: Path) -> None:
    folder = data / "slides" / "cmu-1-small-region-dicom"
    files = sorted(folder.iterdir())
    names = {str(path) for path in files}
    marks = set()
    for path in (files[0], files[5]):
        with open_pyramid(path) as pyramid:
            assert (pyramid.backend, pyramid.width, pyramid.height, len(pyramid.levels)) == ("slide", 2220, 2967, 12)
            assert pyramid.mpp == pytest.approx(0.499)
            mean = pyramid.read(pyramid.bounds, (555, 741)).pixels.mean((0, 1))
            np.testing.assert_allclose(mean, (202.092, 131.105, 136.433), atol=1.5)
        assert companions(path) == names - {str(path)}
        assert claims(path)
        marks.add(fingerprint(path))
    assert len(marks) == 1, "one series is one image"
    with pytest.raises(UnsupportedFormatError, match="without zarr metadata; name an image file in it"):
        open_pyramid(folder)


@pytest.mark.parametrize("column", range(3))
def test_levels_whose_ratio_is_not_whole_differ_by_rounding_only(column: int, data: Path) -> None:
    path = data / "slides" / "boxes.tiff"
    with open_pyramid(path, backend="slide") as slide, open_pyramid(path) as tiff:
        for level in slide.levels:
            at = Region(column * 60, 20, 60, 60)
            size = max(1, int(60 / level.downsample_x))
            there, here = slide.read(at, size).pixels.astype(int), tiff.read(at, size).pixels.astype(int)
            assert np.abs(there - here).max() <= (0 if level.index < 2 else 2)


def test_alpha_goes_over_the_background(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rgb, alpha = picture(128, 128), random.choice([0, 90, 255], (128, 128)).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, np.dstack([rgb, alpha]), photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64), metadata=None
    )
    share = alpha[:, :, None] / 255.0
    expected = rgb * share + (1 - share) * 255
    with open_pyramid(path, backend="slide") as pyramid:
        tile = pyramid.read(Region(0, 0, 128, 128), 128, mask=True)
    np.testing.assert_array_equal(tile.valid, alpha > 0)
    # OpenSlide multiplies by alpha and divides again, in eight bits.
    assert np.abs(tile.pixels - expected).max() <= 2


class _Properties(SlidePyramid):
    """A slide whose properties are another vendor's."""

    said: dict[str, str]

    def _open(self) -> None:
        super()._open()
        self.properties = {**self.properties, **self.said}
        self.bounds = self._bounds(self.width, self.height)


@pytest.mark.parametrize(
    ("said", "background", "bounds"),
    [
        ({"openslide.background-color": "0A0B0C"}, (10, 11, 12), (0, 0, 208, 144)),
        ({"openslide.background-color": "red"}, (255, 255, 255), (0, 0, 208, 144)),
        (
            {
                "openslide.bounds-x": "8",
                "openslide.bounds-y": "9",
                "openslide.bounds-width": "50",
                "openslide.bounds-height": "999",
            },
            (255, 255, 255),
            (8, 9, 50, 135),
        ),
        ({"openslide.bounds-x": "abc"}, (255, 255, 255), (0, 0, 208, 144)),
        (
            {f"openslide.bounds-{name}": "900" for name in ("x", "y", "width", "height")},
            (255, 255, 255),
            (0, 0, 208, 144),
        ),
    ],
)
def test_vendor_properties(
    said: dict[str, str], background: tuple[int, ...], bounds: tuple[float, ...], tmp_path: Path
) -> None:
    path = tiled_tiff(tmp_path).path
    with type("Vendor", (_Properties,), {"said": said})(path) as pyramid:
        assert (pyramid.background, pyramid.bounds.as_tuple()) == (background, bounds)
        assert (pyramid.read(Region(-50, 0, 40, 40), 5).pixels == background).all()


def test_openslide_never_sees_a_tile_that_would_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(64, 64), tile=(64, 64), photometric="rgb", metadata=None)
    for width, kind, said in (
        (1 << 22, UnsupportedFormatError, "cannot be read lazily"),
        (0, CorruptImageError, "impossible size"),
    ):
        with tifffile.TiffFile(path, mode="r+") as tif:
            tif.pages[0].tags["TileWidth"].overwrite(width, dtype="I")
        with pytest.raises(kind, match=said):
            open_pyramid(path, backend="slide")


def test_what_is_no_slide_is_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    with pytest.raises(UnsupportedFormatError, match="OpenSlide does not know this format"):
        open_pyramid(path, backend="slide")


def test_many_damaged_tiles_at_once_spoil_no_good_one(tmp_path: Path) -> None:
    """OpenSlide's errors stay with its handle; another thread's must not be taken for one's own."""
    sample = tiled_tiff(tmp_path)
    regions = [Region(x, y, 8, 8) for _ in range(6) for y in (10, 74, 134) for x in (10, 74, 138, 200)]
    with open_pyramid(sample.damaged or "", backend="slide") as pyramid:
        patches = pyramid.read_many(regions, 8)
    broken = [error is not None for error in patches.errors]
    assert broken == [(region.x, region.y) == (74, 74) for region in regions]
    truth = openslide_level(sample.path, 0)
    for region, pixels, error in zip(regions, patches.pixels, patches.errors, strict=True):
        if error is None and (region.x, region.y) != (74, 10):
            x, y = int(region.x), int(region.y)
            np.testing.assert_array_equal(pixels, truth[y : y + 8, x : x + 8, :3])


def test_jpeg_2000_of_aperio_in_ycbcr_is_left_to_openslide(tmp_path: Path) -> None:
    pixels, path = picture(64, 64), tmp_path / "a.svs"

    def tiles() -> Iterator[bytes]:
        yield imagecodecs.jpeg2k_encode(pixels, codecformat="J2K", mct=False, reversible=True)

    with tifffile.TiffWriter(path) as tif:
        tif.write(
            tiles(),
            shape=pixels.shape,
            dtype="u1",
            tile=(64, 64),
            photometric="rgb",
            compression=33003,
            description="Aperio Image Library v11.2.1\r\n64x64 (64x64)|MPP = 0.25",
            metadata=None,
            software=False,
        )
    with open_pyramid(path) as pyramid:
        assert (pyramid.backend, pyramid.mpp) == ("slide", 0.25)
        np.testing.assert_array_equal(pyramid.read(Region(0, 0, 64, 64), 64).pixels, openslide_level(path, 0)[..., :3])
    with pytest.raises(UnsupportedFormatError, match="left to the backend `slide`"):
        open_pyramid(path, backend="tiff")
