"""What every reader must do, done by large flat images: through a converted pyramid, and by a scaled decode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import simplejpeg
import tifffile
from PIL import Image

from pyrtrav.geometry import Region
from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.array import halve
from tests.contracts.pyramid import PyramidContract, Sample, picture


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Files, and a cache directory, that all tests share: none of them changes a sample."""
    folder = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYRTRAV_CACHE_DIR", str(folder / "cache"))
        patch.setenv("PYRTRAV_WHOLE_PIXELS", "20000")
        yield folder


def sample_of(path: Path, damaged: Path) -> Sample:
    """The converted pyramid as tifffile reads it."""
    with open_pyramid(path) as pyramid:
        pyramid.read(Region(0, 0, 64, 64), 64)
    with open_pyramid(path) as pyramid, tifffile.TiffFile(pyramid.properties["converted"]) as tif:
        arrays = [page.asarray() for page in tif.pages]
        stored = sum(sum(page.databytecounts) for page in tif.pages)
    return Sample(path, arrays, stored_bytes=stored, damaged=damaged, one_tile=True)


@pytest.fixture(scope="module", params=["png", "tif"])
def converted(request: pytest.FixtureRequest, folder: Path) -> Sample:
    path, damaged = folder / f"a.{request.param}", folder / f"damaged.{request.param}"
    pixels = picture(301, 523)
    if request.param == "png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels, rowsperstrip=16, photometric="rgb", compression="deflate", metadata=None)
    data = path.read_bytes()
    damaged.write_bytes(data[: len(data) // 2] + bytes(200) + data[len(data) // 2 + 200 :])
    return sample_of(path, damaged)


@pytest.fixture(scope="module")
def scaled(folder: Path) -> Sample:
    path, damaged = folder / "a.jpg", folder / "damaged.jpg"
    Image.fromarray(picture(601, 623)).save(path, quality=92)
    damaged.write_bytes(path.read_bytes()[:-3000])
    sample = sample_of(path, damaged)
    assert [level.shape[1] for level in sample.levels] == [623, 312, 156]
    glance = simplejpeg.decode_jpeg(path.read_bytes(), min_height=76, min_width=78, min_factor=1)
    sample.levels += [glance, halve(glance)]
    assert sample.stored_bytes is not None
    sample.stored_bytes += path.stat().st_size
    return sample


class TestConverted(PyramidContract):
    @pytest.fixture
    def sample(self, converted: Sample) -> Sample:
        return converted


class TestScaledJpeg(PyramidContract):
    @pytest.fixture
    def sample(self, scaled: Sample) -> Sample:
        return scaled
