"""Reading itself: one function for files and arrays, exact whatever is read together; the cache; many regions."""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from collections import OrderedDict

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyrtrav.errors import ConfigError, CorruptImageError, PyramidError, RegionError
from pyrtrav.geometry import Grid, Region
from pyrtrav.pyramid import limits, open_pyramid
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.pyramid.base import Pyramid, shared_cache
from pyrtrav.pyramid.cache import TileCache
from pyrtrav.pyramid.pixels import Samples
from pyrtrav.pyramid.resample import AreaMean, Box
from pyrtrav.pyramid.threads import decode_pool, decode_threads
from pyrtrav.pyramid.tiles import Level, Place, RawTile, plausible_mpp
from tests.contracts.pyramid import WHITE, picture, slow_read

PIXELS = picture(90, 130)


class TiledArray(Pyramid):
    """Levels in memory, cut into tiles: a backend of twenty lines."""

    backend = "tiled-array"
    arrays: tuple[NDArray[np.uint8], ...] = (PIXELS, PIXELS[::2, ::2], PIXELS[:88:4, 2::4])
    tile = (32, 24)

    def _file_identity(self) -> tuple[int, ...]:
        return ()

    def _open(self) -> None:
        height, width = self.arrays[0].shape[:2]
        self.levels = tuple(
            Level(i, array.shape[1], array.shape[0], width / array.shape[1], height / array.shape[0], *self.tile)
            for i, array in enumerate(self.arrays)
        )
        self.mpp, self.bounds, self.properties = None, Region(0, 0, width, height), {}
        self.samples = Samples(3, np.dtype(np.uint8))

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile:
        x, y = column * self.tile[0], row * self.tile[1]
        tile = self.arrays[level][y : y + self.tile[1], x : x + self.tile[0]]
        return RawTile(tile, tile.size)


numbers = st.floats(-200, 200, width=32)
sides = st.one_of(st.floats(0.25, 400), st.integers(1, 400).map(float))
regions = st.builds(Region, st.one_of(numbers, st.integers(-50, 150).map(float)), numbers, sides, sides)


@settings(deadline=None, max_examples=150)
@given(st.lists(regions, max_size=6), st.integers(1, 20), st.integers(1, 20))
def test_any_regions_read_as_the_slow_way(some: list[Region], width: int, height: int) -> None:
    pyramid = TiledArray("memory", cache=TileCache(0))
    patches = pyramid.read_many(some, (width, height), mask=True)
    for region, pixels in zip(some, patches.pixels, strict=True):
        np.testing.assert_array_equal(pixels, slow_read(list(pyramid.arrays), region, (width, height), WHITE))
    assert pyramid.cost.tiles_decoded == pyramid.cost.tiles_distinct, "each tile once a call"


@settings(deadline=None, max_examples=60)
@given(st.floats(-60, 60), st.floats(-60, 60), st.floats(20, 300), st.integers(4, 24), st.integers(1, 3), st.randoms())
def test_cells_of_a_lattice_read_together_and_alone_are_equal(
    x: float, y: float, side: float, size: int, depth: int, random: object
) -> None:
    grid, root = Grid(), Region(x, y, side, side)
    places = range(grid.positions(depth))
    cells = [grid.lattice_region(root, depth, column, row) for row in places for column in places]
    random.shuffle(cells)  # type: ignore[attr-defined]
    pyramid = TiledArray("memory")
    together = pyramid.read_many(cells, size).pixels
    for cell, pixels in list(zip(cells, together, strict=True))[:12]:
        np.testing.assert_array_equal(pyramid.read(cell, size).pixels, pixels)


def test_an_image_in_memory_reads_as_its_file(tmp_path: object) -> None:
    path = f"{tmp_path}/a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", tile=(32, 48), metadata=None)
    with open_pyramid(path) as file:
        memory = ArrayPyramid(PIXELS)
        assert (memory.mpp, memory.background, memory.tiles_total) == (None, WHITE, 1)
        for region in (Region(-3, 5.5, 70, 60), Region(0, 0, 130, 130), Region(7, 8, 20, 20)):
            np.testing.assert_array_equal(memory.read(region, 20).pixels, file.read(region, 20).pixels)
        copy = pickle.loads(pickle.dumps(memory))  # noqa: S301
        np.testing.assert_array_equal(copy.read(region, 9).pixels, memory.read(region, 9).pixels)
    assert memory.cost.bytes_read == memory.cost.tiles_decoded == 0


def test_arrays_of_every_shape() -> None:
    gray = PIXELS[..., 0]
    whole = Region(0, 0, 130, 90)
    assert (ArrayPyramid(gray, channels=1).read(whole, (130, 90)).pixels[..., 0] == gray).all()
    assert (ArrayPyramid(gray).read(whole, (130, 90)).pixels == gray[:, :, None]).all()
    alpha = np.where(np.arange(130) < 50, 0, 255).astype(np.uint8) * np.ones((90, 1), np.uint8)
    for colors in (gray[:, :, None], PIXELS):
        tile = ArrayPyramid(np.dstack([colors, alpha])).read(whole, (130, 90), mask=True)
        assert (tile.pixels[:, :50] == 255).all()
        assert (tile.pixels[:, 50:] == colors[:, 50:]).all()
        assert tile.valid is not None
        assert (tile.valid == (alpha > 0)).all()
    with pytest.raises(RegionError, match="an image array is"):
        ArrayPyramid(np.zeros((0, 4)))
    floats = ArrayPyramid(np.linspace(0, 1, 100).reshape(10, 10), window=(0, 1))
    assert floats.read(Region(9, 9, 1, 1), 1).pixels.ravel().tolist() == [255] * 3


@pytest.mark.parametrize("step", [0.3, 1.0, 1.7, 5.0, 13.37, 99.0, 3000.0])
def test_sums_are_exact_at_any_scale(step: float) -> None:
    """Integers up to 32 bits; the largest possible sum must not wrap around."""
    white = np.full((300, 300, 3), 255, np.uint8)
    mean = AreaMean(Box(-1.3, -0.7, step, step), (7, 5), (300, 300), (255, 255, 255), mask=True)
    mean.add(white, None, Place(0, 0, 300, 300))
    assert (mean.result() == 255).all()
    assert mean.unit * step > 1000 or mean.unit == 1 << 30, "edges finer than 1/1000 of a patch pixel"


def test_float_noise_decodes_no_other_tile() -> None:
    pyramid = TiledArray("memory", cache=TileCache(0))
    noise = 3e-11
    pyramid.read(Region(32 + noise, 24 - noise, 32 + noise, 24 + 2 * noise), (32, 24))
    assert pyramid.cost.tiles_distinct == 1
    np.testing.assert_array_equal(
        pyramid.read(Region(noise, -noise, 32, 24), (32, 24)).pixels, PIXELS[:24, :32], "a copy still"
    )


class Explosive(TiledArray):
    """A backend whose decoder raises what no one expects."""

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile:
        if (column, row) == (1, 1):
            raise ZeroDivisionError("division by a tag")
        return super()._decode_tile(level, column, row)


def test_whatever_a_decoder_raises_is_named() -> None:
    pyramid = Explosive("memory", cache=TileCache(0))
    with pytest.raises(
        PyramidError, match="memory: level 0, tile column 1, row 1: ZeroDivisionError: division by a tag"
    ):
        pyramid.read(Region(0, 0, 60, 60), 60)
    lattice = [Region(x, y, 30, 30) for y in (0, 15, 30) for x in (0, 15, 30, 70)]
    patches = pyramid.read_many(lattice, 20)  # averaged on one canvas
    for region, pixels, error in zip(lattice, patches.pixels, patches.errors, strict=True):
        assert (error is not None) == region.intersects(Region(32, 24, 32, 24))
        if error is None:
            np.testing.assert_array_equal(pixels, slow_read(list(pyramid.arrays), region, (20, 20), WHITE))


def test_the_coarsest_level_that_needs_no_upsampling() -> None:
    pyramid = TiledArray("memory")
    chosen = {
        side: pyramid.level_for(Region(0, 0, side, side), (10, 10)).index for side in (5, 10, 19, 20, 39, 41, 400)
    }
    assert chosen == {5: 0, 10: 0, 19: 0, 20: 1, 39: 1, 41: 2, 400: 2}
    assert pyramid.level_for(Region(0, 0, 400, 15), (10, 10)).index == 0, "both axes count"


class Thing:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


@settings(max_examples=200)
@given(
    st.integers(0, 50),
    st.lists(st.tuples(st.sampled_from(["put", "get"]), st.integers(0, 6), st.integers(0, 30)), max_size=40),
)
def test_the_cache_keeps_the_latest_used_within_its_bound(bound: int, steps: list[tuple[str, int, int]]) -> None:
    cache: TileCache[Thing] = TileCache(bound)
    model: OrderedDict[int, Thing] = OrderedDict()
    for action, key, size in steps:
        if action == "get":
            assert cache.get(key) is model.get(key)
            if key in model:
                model.move_to_end(key)
        else:
            thing = Thing(size)
            cache.put(key, thing)
            if size <= bound:
                model.pop(key, None)
                model[key] = thing
                while sum(each.nbytes for each in model.values()) > bound:
                    model.popitem(last=False)
        assert cache.nbytes == sum(each.nbytes for each in model.values()) <= bound
        assert len(cache) == len(model)
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_two_open_pyramids_share_tiles_but_not_across_options(tmp_path: object) -> None:
    path = f"{tmp_path}/a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", tile=(32, 48), metadata=None)
    region = Region(0, 0, 20, 20)
    with open_pyramid(path) as one, open_pyramid(path) as two, open_pyramid(path, channels=1) as gray:
        one.read(region, 20)
        two.read(region, 20)
        assert (two.cost.tiles_decoded, two.cost.tiles_distinct) == (0, 1)
        gray.read(region, 20)
        assert gray.cost.tiles_decoded == 1
    os.utime(path, ns=(5, 5))
    with open_pyramid(path) as again:
        again.read(region, 20)
        assert again.cost.tiles_decoded == 1, "a changed file finds no old tiles"
    assert shared_cache().nbytes <= shared_cache().max_bytes


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRTRAV_THREADS", "3")
    assert decode_threads() == 3
    monkeypatch.delenv("PYRTRAV_THREADS")
    assert decode_threads() >= 1
    monkeypatch.setenv("PYRTRAV_CACHE_BYTES", "12345")
    assert limits.cache_bytes() == 12345
    for name, asked in (
        ("THREADS", limits.threads),
        ("CACHE_BYTES", limits.cache_bytes),
        ("OPEN_IMAGES", limits.open_images),
    ):
        monkeypatch.setenv(f"PYRTRAV_{name}", "lots")
        with pytest.raises(ConfigError, match=f"PYRTRAV_{name} is a whole number"):
            asked()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.one_of(st.text(max_size=8), st.floats(), st.none(), st.integers()))
def test_mpp_is_plausible_or_none(value: object) -> None:
    mpp = plausible_mpp(value)
    assert mpp is None or 0.02 <= mpp <= 50
    assert (plausible_mpp("0,25"), plausible_mpp("1e308"), plausible_mpp("inf")) == (0.25, None, None)


@pytest.mark.parametrize("at", [1e9, -1e16, 1e17])
def test_however_far_outside_is_background(at: float) -> None:
    patches = TiledArray("memory").read_many([Region(at, -at, 40.5, 40.5), Region(3, 4, 20, 20)], 9, mask=True)
    assert (patches.pixels[0] == 255).all()
    assert patches.valid is not None
    assert not patches.valid[0].any()
    assert patches.valid[1].all()


def test_so_far_outside_that_there_is_no_area() -> None:
    with pytest.raises(RegionError, match="no area in floating point"):
        TiledArray("memory").read(Region(1e300, 0, 40, 40), 9)


class _Short(TiledArray):
    """A tile is smaller than it is declared."""

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile:
        raw = super()._decode_tile(level, column, row)
        return RawTile(raw.samples[:-1], raw.stored_bytes) if (level, column, row) == (0, 1, 1) else raw


def test_a_tile_that_is_too_small_is_damage_not_memory() -> None:
    pyramid = _Short("memory", cache=TileCache(0))
    for size in (130, 57):
        with pytest.raises(CorruptImageError, match="column 1, row 1: the tile is 32 x 23 pixels, but 32 x 24 are"):
            pyramid.read(Region(0, 0, 130, 90), (size, size))
    assert (pyramid.read(Region(0, 0, 30, 20), 7).pixels >= 0).all()


@pytest.mark.parametrize("size", [(0.05, 0.05), (1e-5, 1e-5), (0.001, 60)])
def test_however_magnified_a_pixel_stays_what_it_is(size: tuple[float, float]) -> None:
    pixels = ArrayPyramid(np.full((90, 90, 3), 200, np.uint8)).read(Region(3.3, 4.4, *size), 64).pixels
    assert (pixels == 200).all()


def test_a_busy_pool_holds_no_read_up() -> None:
    gate = threading.Event()
    waiting = [decode_pool().submit(gate.wait, 20) for _ in range(4 * decode_threads())]
    try:
        pyramid = TiledArray("memory", cache=TileCache(0))
        np.testing.assert_array_equal(pyramid.read(Region(0, 0, 130, 90), (130, 90)).pixels, PIXELS)
        assert not all(future.done() for future in waiting)
    finally:
        gate.set()


class _Damaged(TiledArray):
    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile:
        raise ValueError("damaged")


def test_an_error_keeps_nothing_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRTRAV_THREADS", "1")  # other threads let go in their own time
    pyramid = _Damaged("memory")
    known = weakref.ref(pyramid)
    errors = pyramid.read_many([Region(0, 0, 130, 90)], 50).errors
    del pyramid
    assert known() is None, "without the garbage collector"
    assert errors[0] is not None
