"""Thousands of images known, few of them open; memory that is used again; files that change while they are read."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, ImageChangedError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, buffers, open_pyramid
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.pyramid.handles import Handles
from pyrtrav.pyramid.tiff import TiffPyramid
from pyrtrav.pyramid.tiles import RawTile
from tests.contracts.pyramid import picture

WHOLE = Region(0, 0, 96, 80)


def write_many(folder: Path, count: int) -> list[tuple[Path, NDArray[np.uint8]]]:
    written = []
    for number in range(count):
        pixels = picture(80, 96, number)
        path = folder / f"{number}.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), compression="deflate", metadata=None)
        written.append((path, pixels))
    return written


def open_files() -> int:
    gc.collect()  # what other tests left open
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux lists them")
def test_of_many_known_images_few_hold_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrtrav.pyramid.base._HANDLES", Handles(5))
    shared_cache().clear()
    written = write_many(tmp_path, 15)
    before = open_files()
    pyramids = [open_pyramid(path) for path, _ in written]
    assert open_files() - before <= 5
    for _ in range(2):
        for pyramid, (_, pixels) in zip(pyramids, written, strict=True):
            np.testing.assert_array_equal(pyramid.read(WHOLE, (96, 80)).pixels, pixels)
            assert open_files() - before <= 5
    assert all(pyramid.cost.tiles_distinct == 4 for pyramid in pyramids), "the ledger goes on"
    again = pickle.loads(pickle.dumps(pyramids[0]))  # noqa: S301
    np.testing.assert_array_equal(again.read(WHOLE, (96, 80)).pixels, written[0][1])
    for pyramid in (*pyramids, again):
        pyramid.close()
    assert open_files() == before


def test_parking_from_many_threads_changes_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrtrav.pyramid.base._HANDLES", Handles(2))
    monkeypatch.setattr("pyrtrav.pyramid.base._CACHE.max_bytes", 0)
    opened = [(open_pyramid(path), pixels) for path, pixels in write_many(tmp_path, 6)]
    wrong: list[object] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for number in random.integers(0, len(opened), 60):
            pyramid, pixels = opened[number]
            try:
                if not np.array_equal(pyramid.read(WHOLE, (96, 80)).pixels, pixels):
                    wrong.append(number)
            except Exception as error:  # noqa: BLE001 (the test tells it)
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux lists them")
def test_what_was_in_use_is_parked_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handles = Handles(2)
    monkeypatch.setattr("pyrtrav.pyramid.base._HANDLES", handles)
    before = open_files()
    pyramids = [open_pyramid(path) for path, _ in write_many(tmp_path, 6)]
    with pyramids[0]._in_use(), pyramids[1]._in_use(), pyramids[2]._in_use():
        assert open_files() - before == 3
    pyramids[5].read(WHOLE, 8)
    assert open_files() - before <= 2
    for pyramid in pyramids:
        pyramid.close()


def test_a_parked_image_whose_file_was_replaced_is_not_read(tmp_path: Path) -> None:
    (path, _), (other, _) = write_many(tmp_path, 2)
    with open_pyramid(path) as pyramid:
        pyramid.park()
        shutil.copy(other, path)
        with pytest.raises(ImageChangedError, match="changed since it was opened") as caught:
            pyramid.read(WHOLE, 8)
    assert isinstance(caught.value, CorruptImageError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


class _WrittenMeanwhile(TiffPyramid):
    """Somebody writes to the file between two tiles."""

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile | None:
        os.utime(self.path, ns=(0, 0))
        return super()._decode_tile(level, column, row, shrink)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    ((path, _),) = write_many(tmp_path, 1)
    pyramid: Pyramid
    with _WrittenMeanwhile(path) as pyramid, pytest.raises(ImageChangedError):
        pyramid.read(WHOLE, (96, 80))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 5000), st.booleans()), max_size=40))
def test_lent_memory_is_nobody_elses(steps: list[tuple[int, bool]]) -> None:
    held: list[tuple[int, NDArray[np.uint16]]] = []
    for number, (size, drop) in enumerate(steps):
        array = buffers.empty((size, 2), "uint16")
        assert (array.shape, array.dtype, array.flags.c_contiguous) == ((size, 2), np.uint16, True)
        array[:] = number
        held.append((number, array[size // 2 :]))  # a part keeps the whole
        del array
        if drop:
            held.pop(len(held) // 2)
        assert all((part == value).all() for value, part in held)
