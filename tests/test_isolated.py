"""Images that are decoded in a process of their own: they are read as ever, and a decoder that dies costs one image."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pyrtrav.errors import ConfigError, CorruptImageError, PyramidError, TimeLimitError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, isolated, open_pyramid
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.pyramid.time_limit import TimeLimit
from tests.contracts.pyramid import Sample
from tests.samples import IMAGES, SLIDE
from tests.test_pyramid_slide import TestSlideOnTiff as SlideOnTiff
from tests.test_pyramid_slide import tiled_tiff

WHOLE = Region(0, 0, 208, 144)


@pytest.fixture(scope="module", autouse=True)
def _no_reader_is_left() -> Iterator[None]:
    yield
    isolated.close_readers()


@pytest.fixture
def _broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Readers that break on files whose names say so."""
    isolated.close_readers()
    monkeypatch.setattr(isolated, "IMPORTS", ["tests.broken_readers"])
    yield
    isolated.close_readers()


class TestIsolatedSlide(SlideOnTiff):
    """All that is promised of OpenSlide's formats, in another process."""

    @pytest.fixture
    def open_it(self, sample: Sample) -> Callable[..., Pyramid]:
        return lambda path=sample.path, **options: open_pyramid(path, backend="slide", isolate="auto", **options)

    def test_reads_after_a_fork_on_both_sides(
        self, sample: Sample, open_it: Callable[..., Pyramid], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYRTRAV_THREADS", "1")  # each child starts readers of its own
        super().test_reads_after_a_fork_on_both_sides(sample, open_it)


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_every_format_is_read_alike(image: Path) -> None:
    with open_pyramid(image) as here, open_pyramid(image, isolate="always") as apart:
        assert (here.levels, here.mpp, here.bounds, here.backend) == (
            apart.levels,
            apart.mpp,
            apart.bounds,
            apart.backend,
        )
        region = here.bounds
        wanted = here.read_many([region], 100, mask=True)
        shared_cache().clear()
        found = apart.read_many([region], 100, mask=True)
        assert np.array_equal(wanted.pixels, found.pixels)
        assert here.cost == apart.cost


def test_ours_are_not_isolated_unless_asked() -> None:
    with open_pyramid(SLIDE, isolate="auto") as pyramid:
        assert not isinstance(pyramid, isolated.Isolated)
    with pytest.raises(ConfigError, match="did you mean 'always'"):
        open_pyramid(SLIDE, isolate="allways")


@pytest.mark.usefixtures("_broken")
def test_a_crash_costs_one_image_and_is_named(tmp_path: Path) -> None:
    good = tiled_tiff(tmp_path).path
    bad = shutil.copy(good, tmp_path / "abort.tif")
    with open_pyramid(good, backend="slide", isolate="auto") as first:
        wanted = first.read(WHOLE, (208, 144)).pixels
        with open_pyramid(bad, backend="slide", isolate="auto") as broken:
            for _ in range(2):
                with pytest.raises(CorruptImageError, match=r"crashed \(SIGABRT") as told:
                    broken.read(WHOLE, (208, 144))
                assert str(bad) in str(told.value)
        shared_cache().clear()
        assert np.array_equal(first.read(WHOLE, (208, 144)).pixels, wanted)


@pytest.mark.usefixtures("_broken")
def test_openslide_aborting_costs_one_image(tmp_path: Path) -> None:
    """Not ours: OpenSlide's own end on tiles that it has no memory for."""
    bad = tmp_path / "giant.tif"
    with tifffile.TiffWriter(bad) as tif:
        tif.write(
            np.zeros((256, 256, 3), np.uint8), photometric="rgb", compression="deflate", tile=(64, 64), metadata=None
        )
    with tifffile.TiffFile(bad, mode="r+") as tif:
        for name in ("TileWidth", "TileLength"):
            tif.pages[0].tags[name].overwrite(1 << 20)
    code = f"import openslide; openslide.OpenSlide({str(bad)!r}).read_region((0, 0), 0, (64, 64))"
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True)
    if alone.returncode >= 0:
        pytest.skip("this OpenSlide does not abort on giant tiles")
    with (
        pytest.raises(CorruptImageError, match=r"crashed \(SIG"),
        open_pyramid(bad, backend="slide", isolate="auto") as pyramid,
    ):
        pyramid.read(Region(0, 0, 256, 256), 64)


@pytest.mark.usefixtures("_broken")
def test_a_hang_ends_with_the_time_limit(tmp_path: Path) -> None:
    bad = shutil.copy(tiled_tiff(tmp_path).path, tmp_path / "hang.tif")
    begun = time.monotonic()
    with open_pyramid(bad, backend="slide", isolate="auto", limit=TimeLimit(3)) as pyramid:
        for _ in range(2):
            with pytest.raises(TimeLimitError, match="more than 3 s"):
                pyramid.read(WHOLE, (208, 144))
    assert time.monotonic() - begun < 8


def test_starting_a_reader_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    open_pyramid(SLIDE, isolate="never").read(WHOLE, (208, 144))  # loads what is compiled, which takes time too
    isolated.close_readers()
    monkeypatch.setattr(isolated, "IMPORTS", ["tests.slow_readers"])
    begun = time.monotonic()
    with open_pyramid(SLIDE, isolate="always", limit=TimeLimit(2)) as pyramid:
        shared_cache().clear()
        pyramid.read(WHOLE, (208, 144))
    assert time.monotonic() - begun > 3
    isolated.close_readers()


def test_a_reader_that_does_not_start_is_not_the_image_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    isolated.close_readers()
    monkeypatch.setattr(isolated, "IMPORTS", ["tests.no_such_module"])
    with open_pyramid(SLIDE, isolate="always") as pyramid:
        shared_cache().clear()
        with pytest.raises(PyramidError, match=r"did not start .*no_such_module") as told:
            pyramid.read(WHOLE, (208, 144))
    assert not isinstance(told.value, CorruptImageError)


@pytest.mark.usefixtures("_broken")
def test_waiting_for_a_reader_is_free_and_a_hang_is_paid_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image holds every reader with tiles that hang, for longer than the others have."""
    monkeypatch.setenv("PYRTRAV_THREADS", "2")
    monkeypatch.setattr(isolated, "_READERS", None)
    hanging, *good = (shutil.copy(SLIDE, tmp_path / f"{name}.svs") for name in ("hang", "a", "b", "c"))

    def read(path: str, seconds: float | None, isolate: str = "always") -> PyramidError | None:
        with open_pyramid(path, isolate=isolate, limit=TimeLimit(seconds)) as pyramid:
            return pyramid.read_many([Region(0, 0, 1024, 1024)], 1024).errors[0]

    assert read(str(SLIDE), None, "never") is None  # loads what is compiled, which takes time too
    with ThreadPoolExecutor(4) as threads:
        ends = threads.submit(read, hanging, 4)
        time.sleep(0.5)
        begun = time.monotonic()
        done = [threads.submit(read, path, 3) for path in good]
        assert isinstance(ends.result(), TimeLimitError)
        assert [one.result() for one in done] == [None] * 3
        assert time.monotonic() - begun > 3, "they had to wait"


@pytest.mark.usefixtures("_broken")
def test_an_image_that_hung_asks_no_more_whatever_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other tiles, which wait for a reader meanwhile, do not wait for the end of another hang each."""
    monkeypatch.setattr(isolated, "PATIENCE_SECONDS", 4.0)
    monkeypatch.setenv("PYRTRAV_THREADS", "1")
    monkeypatch.setattr(isolated, "_READERS", None)
    bad = shutil.copy(SLIDE, tmp_path / "hang.svs")
    begun = time.monotonic()
    with open_pyramid(bad, isolate="always") as pyramid, ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(pyramid.read, Region(x, 0, 9, 9), 9) for x in (0, 300, 600, 900)]
        assert all(isinstance(one.exception(), TimeLimitError) for one in asked)
    # Four hangs would take 16; a busy machine needs some seconds to start the reader.
    assert time.monotonic() - begun < 10


@pytest.mark.usefixtures("_broken")
def test_a_hang_ends_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "PATIENCE_SECONDS", 1.0)
    bad = shutil.copy(tiled_tiff(tmp_path).path, tmp_path / "hang.tif")
    with open_pyramid(bad, backend="slide", isolate="auto") as pyramid:
        with pytest.raises(TimeLimitError, match="did not answer for 1 s"):
            pyramid.read(WHOLE, (208, 144))


def test_a_killed_reader_is_replaced(tmp_path: Path) -> None:
    """Not its file's doing: other files are read on, by another."""
    paths = [shutil.copy(tiled_tiff(tmp_path).path, tmp_path / f"{name}.tif") for name in "bc"]
    isolated.close_readers()
    for path in paths:
        open_pyramid(path, backend="slide", isolate="auto").close()
    (reader,) = isolated.readers()._idle
    os.kill(reader._process.pid, signal.SIGKILL)
    with open_pyramid(paths[0], backend="slide", isolate="auto") as pyramid:
        assert pyramid.width == 208


def test_a_reader_ends_with_its_program(tmp_path: Path) -> None:
    path = tiled_tiff(tmp_path).path
    code = (
        "import os, signal; from pyrtrav.pyramid import open_pyramid, isolated\n"
        f"open_pyramid({str(path)!r}, backend='slide', isolate='auto')\n"
        "print(isolated.readers()._idle[0]._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    deadline = time.monotonic() + 5
    while _runs(pid):
        assert time.monotonic() < deadline, "the reader is still there"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_slow_reading_ends_with_the_time_limit_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process of its own the limit is looked at before every tile."""
    from pyrtrav.pyramid.tiff import TiffPyramid

    decode = TiffPyramid._decode_tile

    def slow(self: TiffPyramid, *key: int) -> object:
        time.sleep(0.05)
        return decode(self, *key)

    monkeypatch.setattr(TiffPyramid, "_decode_tile", slow)
    with open_pyramid(SLIDE, limit=TimeLimit(0.2)) as pyramid:
        with pytest.raises(TimeLimitError, match=r"slide\.svs: opening and reading it took more than 0\.2 s"):
            pyramid.read(pyramid.bounds, (pyramid.width, pyramid.height))


def test_what_is_stopped_reads_no_more() -> None:
    limit = TimeLimit()
    limit._stopped.set()
    with pytest.raises(PyramidError, match="stopped"):
        open_pyramid(SLIDE, limit=limit)
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="max-seconds"):
            TimeLimit(seconds)
