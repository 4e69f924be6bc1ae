"""What every reader must do, and a slow, obvious reading of an array to compare it with."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyrtrav.errors import ConfigError, CorruptImageError, PyramidError, RegionError
from pyrtrav.geometry import Grid, Region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.inspect import claims, describe, fingerprint

WHITE = (255, 255, 255)


@dataclass
class Sample:
    """A file and what is in it, by another library."""

    path: Path
    levels: list[NDArray[np.uint8]]
    """RGB, largest first; background where a tile is empty."""
    valid: list[NDArray[np.bool_]] | None = None
    """Which pixels are stored image; None where all are."""
    background: tuple[int, int, int] = WHITE
    stored_bytes: int | None = None
    """Sum over all stored tiles; None where the backend cannot know."""
    mpp: float | None = None
    damaged: Path | None = None
    """A copy in which the tile that holds the middle of level 0 cannot be decoded, and the one at its corner can."""
    one_tile: bool = False
    """Whether the file is one tile, so that damage is everywhere."""


def slow_read(
    levels: list[NDArray[Any]], region: Region, size: tuple[int, int], background: tuple[int, ...]
) -> NDArray[np.uint8]:
    """The area-weighted mean, pixel by pixel of the whole level, in float64."""
    means = slow_means(levels, region, size, background)
    return np.rint(means).astype(np.uint8)


def slow_means(
    levels: list[NDArray[Any]], region: Region, size: tuple[int, int], background: tuple[int, ...]
) -> NDArray[np.float64]:
    full_height, full_width = levels[0].shape[:2]
    chosen = levels[0]
    for level in levels:
        height, width = level.shape[:2]
        finest_x, finest_y = region.width / size[0], region.height / size[1]
        if full_width / width <= finest_x * (1 + 1e-9) and full_height / height <= finest_y * (1 + 1e-9):
            chosen = level
    height, width = chosen.shape[:2]
    step_x, step_y = region.width * width / full_width / size[0], region.height * height / full_height / size[1]
    # Edges are whole multiples of 2^-f pixels, f such that the box of a patch pixel is at most 2^24 units.
    f = max(0, min(30, math.floor((23.9 - math.log2(step_x * step_y)) / 2)))
    weight_x, side_x = _weights(region.x * width / full_width, step_x, size[0], width, f)
    weight_y, side_y = _weights(region.y * height / full_height, step_y, size[1], height, f)
    area = side_y[:, None] * side_x
    rows, columns = weight_y.any(0), weight_x.any(0)
    covered = chosen[rows][:, columns].astype(np.float64)
    inside = np.einsum("ih,hwc,jw->ijc", weight_y[:, rows], covered, weight_x[:, columns], optimize=True)
    outside = area - weight_y.sum(1)[:, None] * weight_x.sum(1)
    return np.asarray((inside + outside[:, :, None] * np.array(background, np.float64)) / area[:, :, None])


def _weights(
    start: float, step: float, count: int, pixels: int, f: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    edges = np.rint((start + step * np.arange(count + 1)) * 2**f) / 2**f
    at = np.arange(pixels)
    overlap = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    return np.maximum(overlap, 0), np.diff(edges)


def slow_valid(sample: Sample, region: Region, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether more than half of a patch pixel's box is stored image."""
    masks = sample.valid or [np.ones(level.shape[:2], bool) for level in sample.levels]
    means = slow_means([mask[:, :, None] for mask in masks], region, size, (0,))
    return np.asarray(means[:, :, 0] > 0.5)


def some_regions(sample: Sample, seed: int, count: int = 8) -> list[Region]:
    """Regions of every scale that touch the image, many of them over its edge, and the cells of one grid."""
    random = np.random.default_rng(seed)
    height, width = sample.levels[0].shape[:2]
    regions = []
    for _ in range(count):
        side = max(width, height) * 2 ** random.uniform(-4, 0.5)
        x, y = random.uniform(-side / 2, width - side / 2), random.uniform(-side / 2, height - side / 2)
        regions.append(Region(x, y, side, side * 2 ** random.uniform(-0.5, 0.5)))
    root = Region(-3.3, -2.9, max(width, height) * 0.9, max(width, height) * 0.9)
    positions = range(0, Grid().positions(2), 2)
    return regions + [Grid().lattice_region(root, 2, column, row) for row in positions for column in positions]


def whole_level_regions(sample: Sample) -> list[tuple[Region, tuple[int, int]]]:
    """Each level once, at its own size."""
    height, width = sample.levels[0].shape[:2]
    return [(Region(0, 0, width, height), (level.shape[1], level.shape[0])) for level in sample.levels]


def _read_in_child(pyramid: Pyramid, region: Region, size: int, pipe: Any) -> None:
    try:
        pipe.send(pyramid.read(region, size).pixels)
    except BaseException as error:  # noqa: BLE001 (the parent raises it)
        pipe.send(error)


class PyramidContract:
    """Inherited by every backend's tests; they give a ``sample``, written by an independent library."""

    @pytest.fixture
    def sample(self) -> Sample:
        raise NotImplementedError

    @pytest.fixture
    def open_it(self, sample: Sample) -> Callable[..., Pyramid]:
        return lambda path=sample.path, **options: open_pyramid(path, **options)

    def test_levels_are_the_stored_ones(self, sample: Sample, open_it: Callable[..., Pyramid]) -> None:
        with open_it() as pyramid:
            assert [(level.height, level.width) for level in pyramid.levels] == [
                level.shape[:2] for level in sample.levels
            ]
            first = pyramid.levels[0]
            assert (first.downsample_x, first.downsample_y) == (1, 1)
            assert pyramid.mpp == (None if sample.mpp is None else pytest.approx(sample.mpp))
            assert (pyramid.background, pyramid.channels) == (sample.background, 3)
            assert pyramid.cost.tiles_total == pyramid.tiles_total > 0

    def test_whole_levels_are_copied(self, sample: Sample, open_it: Callable[..., Pyramid]) -> None:
        with open_it() as pyramid:
            for (region, size), level in zip(whole_level_regions(sample), sample.levels, strict=True):
                np.testing.assert_array_equal(pyramid.read(region, size).pixels, level)

    @pytest.mark.parametrize("size", [1, 17, (40, 23)])
    def test_every_read_equals_the_slow_one(
        self, sample: Sample, open_it: Callable[..., Pyramid], size: int | tuple[int, int]
    ) -> None:
        shape = size if isinstance(size, tuple) else (size, size)
        with open_it() as pyramid:
            for region in some_regions(sample, seed=shape[0]):
                tile = pyramid.read(region, size, mask=True)
                np.testing.assert_array_equal(
                    tile.pixels, slow_read(sample.levels, region, shape, sample.background), str(region)
                )
                np.testing.assert_array_equal(tile.valid, slow_valid(sample, region, shape), str(region))

    def test_one_call_equals_one_by_one(self, sample: Sample, open_it: Callable[..., Pyramid]) -> None:
        regions = some_regions(sample, seed=5)
        with open_it() as pyramid:
            out = np.zeros((len(regions), 24, 24, 3), np.uint8)
            patches = pyramid.read_many(regions, 24, out=out, mask=True)
            assert patches.pixels is out
            assert patches.errors == [None] * len(regions)
            assert patches.valid is not None
            for region, pixels, valid in zip(regions, out, patches.valid, strict=True):
                one = pyramid.read(region, 24, mask=True)
                np.testing.assert_array_equal(one.pixels, pixels)
                np.testing.assert_array_equal(one.valid, valid)
            assert pyramid.read_many([], 24).pixels.shape == (0, 24, 24, 3)

    def test_outside_is_background_and_costs_nothing(self, sample: Sample, open_it: Callable[..., Pyramid]) -> None:
        height, width = sample.levels[0].shape[:2]
        with open_it() as pyramid:
            before = pyramid.cost.tiles_decoded
            places = (
                Region(-40, 3, 40, 40),
                Region(width, 0, 9, 9),
                Region(0, height, 7.5, 7.5),
                Region(5, -1e6, 8, 8),
            )
            for region in places:
                tile = pyramid.read(region, 10, mask=True)
                assert (tile.pixels == sample.background).all()
                assert tile.valid is not None
                assert not tile.valid.any()
            assert pyramid.cost.tiles_decoded == before

    def test_one_channel_is_luma(self, sample: Sample, open_it: Callable[..., Pyramid]) -> None:
        size = sample.levels[0].shape[1], sample.levels[0].shape[0]
        rgb = sample.levels[0].astype(np.float64)
        gray = np.rint(rgb @ [0.299, 0.587, 0.114])
        with open_it(channels=1) as pyramid:
            pixels = pyramid.read(Region(0, 0, *size), size).pixels
        assert pixels.shape == (size[1], size[0], 1)
        where = slice(None) if sample.valid is None else sample.valid[0]
        # Over partial alpha the two orders of rounding may differ by one.
        assert np.abs(pixels[:, :, 0][where] - gray[where]).max() <= 1

    def test_ledger_counts_what_was_read(self, sample: Sample, open_it: Callable[..., Pyramid]) -> None:
        with open_it() as pyramid:
            at_open = pyramid.cost.tiles_decoded
            for region, size in whole_level_regions(sample):
                before = pyramid.cost.tiles_decoded
                # Overlapping regions of one call share their tiles.
                pyramid.read_many([region] * 3, size)
                level = pyramid.level_for(region, size)
                assert pyramid.cost.tiles_decoded - before <= level.columns * level.rows
            cost = pyramid.cost
            if at_open == 0:
                assert cost.tiles_decoded == cost.tiles_distinct
                assert cost.bytes_read == sample.stored_bytes
            assert cost.tiles_distinct <= pyramid.tiles_total
            decoded = cost.tiles_decoded
            for region, size in whole_level_regions(sample):
                pyramid.read(region, size)
            assert pyramid.cost.tiles_decoded == decoded, "the cache keeps what a small image decodes to"

    def test_pickles_as_path_and_options(self, sample: Sample, open_it: Callable[..., Pyramid]) -> None:
        region = some_regions(sample, seed=1)[0]
        with open_it(channels=1, mpp=0.7) as pyramid:
            stored = pickle.dumps(pyramid)
            assert len(stored) < 1000
            with pickle.loads(stored) as copy:  # noqa: S301
                assert (copy.mpp, copy.channels, type(copy)) == (0.7, 1, type(pyramid))
                np.testing.assert_array_equal(copy.read(region, 20).pixels, pyramid.read(region, 20).pixels)

    def test_eight_threads_read_the_same(self, sample: Sample, open_it: Callable[..., Pyramid]) -> None:
        regions = some_regions(sample, seed=2, count=16)
        with open_it() as pyramid:
            expected = [slow_read(sample.levels, region, (16, 16), sample.background) for region in regions]
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(lambda region: pyramid.read(region, 16).pixels, regions * 3))
        for pixels, truth in zip(found, expected * 3, strict=True):
            np.testing.assert_array_equal(pixels, truth)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
    def test_reads_after_a_fork_on_both_sides(self, sample: Sample, open_it: Callable[..., Pyramid]) -> None:
        context = multiprocessing.get_context("fork")
        regions = some_regions(sample, seed=3, count=3)
        with open_it() as pyramid:
            pyramid.read(regions[0], 16)  # its threads and handles exist before the fork
            for region in regions:
                receive, send = context.Pipe(duplex=False)
                child = context.Process(target=_read_in_child, args=(pyramid, region, 16, send))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
                    child.start()
                own = pyramid.read(region, 16).pixels
                assert receive.poll(60), "the child hangs"
                found = receive.recv()
                child.join(60)
                assert isinstance(found, np.ndarray), found
                np.testing.assert_array_equal(found, own)
                np.testing.assert_array_equal(own, slow_read(sample.levels, region, (16, 16), sample.background))

    def test_closing(self, sample: Sample, open_it: Callable[..., Pyramid]) -> None:
        pyramid = open_it()
        region = Region(0, 0, 8, 8)
        pyramid.read(region, 8)
        pyramid.close()
        pyramid.close()
        with pytest.raises(PyramidError, match="is closed"):
            pyramid.read(region, 8)
        with open_it() as pyramid:
            pass
        with pytest.raises(PyramidError, match="is closed"):
            pyramid.read_many([region], 8)

    @pytest.mark.parametrize("region", [Region(0, 0, 0, 5), Region(0, 0, 5, -1), Region(float("nan"), 0, 5, 5)])
    def test_impossible_regions(self, open_it: Callable[..., Pyramid], region: Region) -> None:
        with open_it() as pyramid:
            with pytest.raises(RegionError, match="no area or is not finite"):
                pyramid.read(region, 8)
            with pytest.raises(RegionError, match="at least one pixel"):
                pyramid.read(Region(0, 0, 5, 5), (0, 3))
            with pytest.raises(RegionError, match="`out` must be uint8 of shape"):
                pyramid.read_many([Region(0, 0, 5, 5)], 4, out=np.zeros((1, 4, 5, 3), np.uint8))

    @pytest.mark.parametrize("channels", [2, 0, (0, 1), (-1,)])
    def test_impossible_channels(self, open_it: Callable[..., Pyramid], channels: Any) -> None:
        with pytest.raises(ConfigError, match="channels must be"):
            open_it(channels=channels)
        with pytest.raises(PyramidError, match="numbered from 0"):
            open_it(channels=(0, 1, 99))

    def test_a_changed_file_is_an_error(self, sample: Sample, open_it: Callable[..., Pyramid], tmp_path: Path) -> None:
        copy = tmp_path / f"copy-{sample.path.name}"
        (shutil.copytree if sample.path.is_dir() else shutil.copy)(sample.path, copy)
        with open_it(copy) as pyramid:
            before = fingerprint(copy)
            pyramid.read(Region(0, 0, 8, 8), 8)
            changed = next(path for path in copy.iterdir() if path.is_file()) if copy.is_dir() else copy
            os.utime(changed, ns=(1, 1))
            with pytest.raises(CorruptImageError, match="changed since it was opened"):
                pyramid.read(Region(0, 0, 8, 8), 8)
            assert fingerprint(copy) != before
            shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
            with pytest.raises(PyramidError, match="No such file"):
                pyramid.read(Region(0, 0, 8, 8), 8)

    def test_a_damaged_tile_spoils_only_what_it_touches(self, sample: Sample, open_it: Callable[..., Pyramid]) -> None:
        assert sample.damaged is not None
        height, width = sample.levels[0].shape[:2]
        middle, corner = Region(width // 2 - 2, height // 2 - 2, 4, 4), Region(0, 0, 4, 4)
        with open_it(sample.damaged) as pyramid:
            for _ in range(2):  # an error does not stay
                patches = pyramid.read_many([corner, middle, corner], 4)
                error = patches.errors[1]
                assert isinstance(error, CorruptImageError)
                assert (error.path, error.level) == (str(sample.damaged), 0)
                level = pyramid.levels[0]
                assert error.column == width // 2 // level.tile_width
                assert error.row == height // 2 // level.tile_height
                assert f"level 0, tile column {error.column}, row {error.row}" in str(error)
                assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301
                if not sample.one_tile:
                    assert patches.errors[::2] == [None, None]
                    np.testing.assert_array_equal(patches.pixels[2], sample.levels[0][:4, :4])
                with pytest.raises(CorruptImageError, match="level 0, tile column"):
                    pyramid.read(middle, 4)

    def test_describes_itself_as_plain_data(self, sample: Sample, open_it: Callable[..., Pyramid]) -> None:
        with open_it() as pyramid:
            described = json.loads(json.dumps(describe(pyramid)))
        assert described["backend"] == pyramid.backend
        assert [level["width"] for level in described["levels"]] == [level.shape[1] for level in sample.levels]
        assert claims(sample.path)
        assert fingerprint(sample.path) == fingerprint(sample.path)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """An RGB picture with smooth parts, edges and a little noise: what lossy codecs are made for."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [np.sin(x / a + y / b + c) for a, b, c in random.uniform(3, 40, (3, 3))]
    rings = np.hypot(x - width / 3, y - height / 2) % 37 < 9
    values = 120 + 80 * np.stack(waves, axis=-1) + 40 * rings[:, :, None] + random.normal(0, 4, (height, width, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


def halvings_of(pixels: NDArray[Any], count: int) -> list[NDArray[Any]]:
    """The picture and ``count`` levels of every second pixel of the one before."""
    levels = [pixels]
    for _ in range(count):
        levels.append(np.ascontiguousarray(levels[-1][::2, ::2]))
    return levels
