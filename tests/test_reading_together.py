"""Many threads and processes read at once, and every pixel is the one that a single thread reads, and OpenSlide.

``PYRTRAV_LONG=1`` makes it 10,000 reads for each thread and process, which takes minutes.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.base import shared_cache
from tests.contracts.pyramid import picture
from tests.samples import SAMPLES, SLIDE
from tests.together import LONG, SIZE, SMALL_CACHE, Question, ask, ask_in_child, digest

THREADS, FORKED, SPAWNED = 8, 4, 4 if LONG else 2


def questions_about(pyramids: list[Pyramid], each: int = 40) -> list[Question]:
    random, questions = np.random.default_rng(0), []
    for file, pyramid in enumerate(pyramids):
        for _ in range(each):
            side = float(SIZE * 2 ** random.uniform(-0.5, 2))
            x, y = (float(random.uniform(-side / 4, length - side / 2)) for length in (pyramid.width, pyramid.height))
            region = Region(x, y, side, side)
            questions.append(Question(file, region, digest(pyramid.read(region, SIZE).pixels)))
    return questions


@pytest.fixture(params=["ours", "openslide"])
def paths(request: pytest.FixtureRequest) -> list[Path]:
    if request.param == "ours":
        return [SLIDE, SAMPLES / "scene.ome.tif", SAMPLES / "scene.ome.zarr"]
    data: Path = request.getfixturevalue("data")
    return [data / "slides" / "multi_frame_jpeg_camelyon_challenge_image.dcm"]


@pytest.fixture
def small_cache() -> Iterator[None]:
    before, shared_cache().max_bytes = shared_cache().max_bytes, SMALL_CACHE
    yield
    shared_cache().max_bytes = before


@pytest.mark.timeout(3600 if LONG else 120)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.usefixtures("small_cache")
def test_threads_and_processes_read_what_one_thread_reads(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pyramids = [open_pyramid(path) for path in paths]
    monkeypatch.setenv("PYRTRAV_THREADS", "1")
    questions = questions_about(pyramids)
    assert len({question.answer for question in questions}) > len(questions) / 2  # they are not all blank
    monkeypatch.setenv("PYRTRAV_THREADS", "3")
    ask(
        pyramids[:1], [question for question in questions if question.file == 0], 0
    )  # its threads exist before the fork
    children, receivers = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        for seed in range(FORKED + SPAWNED):
            context: Any = multiprocessing.get_context("fork" if seed < FORKED else "spawn")
            receive, send = context.Pipe(duplex=False)
            children.append(context.Process(target=ask_in_child, args=(pyramids, questions, seed, send)))
            children[-1].start()
            send.close()
            receivers.append(receive)
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            asked = [threads.submit(ask, pyramids, questions, 100 + number) for number in range(THREADS)]
            assert [problem for found in asked for problem in found.result()] == []
        for receive in receivers:
            assert receive.poll(3000 if LONG else 60), "a child hangs"
            assert receive.recv() == []
    finally:
        for child in children:
            child.kill()
            child.join()
        for pyramid in pyramids:
            pyramid.close()


# Equality with OpenSlide.

SUBSAMPLINGS = {"444": (1, 1), "422": (2, 1), "420": (2, 2), "440": (1, 2), "411": (4, 1)}


class Written(NamedTuple):
    """A pyramid of JPEG tiles to be written; its coarsest level may have any size, the others are whole multiples."""

    width: int
    height: int
    steps: tuple[int, ...]
    """Downsample from each level to the next."""
    tile: tuple[int, int]
    """Width, height."""
    subsampling: str
    colours: str
    """As stored: YCBCR or RGB."""
    aperio: bool
    big: bool


@st.composite
def written(draw: st.DrawFn) -> Written:
    colours = draw(st.sampled_from(["YCBCR", "YCBCR", "RGB"]))
    subsampling = "444" if colours == "RGB" else draw(st.sampled_from(list(SUBSAMPLINGS)))
    steps = tuple(draw(st.lists(st.sampled_from([2, 3, 4]), max_size=2)))
    longest = 200 // int(np.prod((1, *steps)))
    # TIFF wants multiples of 16; with 4:1:1 a tile holds whole blocks of 32.
    sides = st.sampled_from([32, 64, 96])
    return Written(
        width=draw(st.integers(1, longest)),
        height=draw(st.integers(1, longest)),
        steps=steps,
        tile=(draw(sides), draw(sides)),
        subsampling=subsampling,
        colours=colours,
        aperio=draw(st.booleans()),
        big=draw(st.booleans()),
    )


def write(path: Path, plan: Written) -> None:
    scale = int(np.prod((1, *plan.steps)))
    with tifffile.TiffWriter(path, bigtiff=plan.big) as tif:
        for index in range(len(plan.steps) + 1):
            width, height = plan.width * scale, plan.height * scale
            description = f"Aperio Image Library\r\n{width}x{height}" if plan.aperio else None
            tif.write(
                tiles_of(plan, picture(height, width, index)),
                shape=(height, width, 3),
                dtype="uint8",
                tile=plan.tile[::-1],
                photometric="rgb" if plan.colours == "RGB" else "ycbcr",
                compression="jpeg",
                subsampling=None if plan.colours == "RGB" else (1, 1),
                description=description,
                subfiletype=0 if plan.aperio else int(index > 0),
                metadata=None,
                software=False,
            )
            scale //= plan.steps[index] if index < len(plan.steps) else 1
    with tifffile.TiffFile(path, mode="r+") as tif:
        for page in tif.pages:
            if plan.colours == "RGB":  # tifffile says YCbCr of any JPEG
                page.tags["PhotometricInterpretation"].overwrite(2)
            else:  # and it does not know 4:4:0
                page.tags["YCbCrSubSampling"].overwrite(SUBSAMPLINGS[plan.subsampling])


def tiles_of(plan: Written, pixels: NDArray[np.uint8]) -> Iterator[bytes]:
    width, height = plan.tile
    rows, columns = -(-pixels.shape[0] // height), -(-pixels.shape[1] // width)
    padding = (0, rows * height - pixels.shape[0]), (0, columns * width - pixels.shape[1]), (0, 0)
    whole = np.pad(pixels, padding, mode="edge")
    for row in range(rows):
        for column in range(columns):
            part = whole[row * height :, column * width :][:height, :width]
            yield bytes(
                imagecodecs.jpeg8_encode(
                    np.ascontiguousarray(part),
                    level=80,
                    colorspace="RGB",
                    outcolorspace=plan.colours,
                    subsampling=plan.subsampling,
                )
            )


@settings(max_examples=400 if LONG else 100, deadline=None)
@given(plan=written(), data=st.data())
def test_jpeg_pixels_are_openslides(plan: Written, data: st.DataObject) -> None:
    """At whole downsamples and places OpenSlide gives the stored pixels; elsewhere it interpolates."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        write(path, plan)
        with openslide.OpenSlide(path) as slide, open_pyramid(path) as pyramid:
            assert pyramid.backend == "tiff"
            sizes = tuple((level.width, level.height) for level in pyramid.levels)
            assert sizes == slide.level_dimensions
            level = pyramid.levels[data.draw(st.integers(0, len(sizes) - 1), label="level")]
            x, y = (data.draw(st.integers(-20, side + 5)) for side in (level.width, level.height))
            width, height = (data.draw(st.integers(1, 120)) for _ in range(2))
            scale = round(level.downsample_x)
            truth = np.asarray(slide.read_region((x * scale, y * scale), level.index, (width, height)))
            region = Region(x * scale, y * scale, width * scale, height * scale)
            pixels, valid = pyramid.read(region, (width, height), mask=True)
            assert valid is not None
            np.testing.assert_array_equal(valid, truth[..., 3] == 255)
            np.testing.assert_array_equal(pixels, np.where(valid[..., None], truth[..., :3], 255))
