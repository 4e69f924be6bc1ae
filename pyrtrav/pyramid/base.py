"""One open image: levels, and reading by region and size.

A backend writes how it opens and how it decodes one tile.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count as numbers
from threading import RLock
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pyrtrav.cost import Cost
from pyrtrav.errors import CorruptImageError, ImageChangedError, PyramidError, RegionError, without_frames
from pyrtrav.geometry import Region
from pyrtrav.pyramid import limits, threads
from pyrtrav.pyramid.batch import Batch, Planned, Request, box_of
from pyrtrav.pyramid.cache import TileCache
from pyrtrav.pyramid.disk_cache import disk_cache, name_of
from pyrtrav.pyramid.handles import Handles
from pyrtrav.pyramid.pixels import (
    Channels,
    PixelRule,
    Samples,
    Window,
    check_channels,
    display_window,
    luma,
    wanted_samples,
)
from pyrtrav.pyramid.resample import Box
from pyrtrav.pyramid.source import identity, is_url
from pyrtrav.pyramid.threads import decode_pool, decode_threads
from pyrtrav.pyramid.tiles import Key, Level, Patches, RawTile, Tile, plausible_mpp
from pyrtrav.pyramid.time_limit import TimeLimit

__all__ = ["Key", "Level", "Patches", "Pyramid", "RawTile", "Tile", "shared_cache"]

MAX_WINDOW_PIXELS = 16 << 20
"""Levels larger than this are not read whole to find a display range."""

_CACHE: TileCache[Tile] = TileCache(limits.cache_bytes())
_NUMBERS = numbers()
_TOKENS: dict[tuple[Hashable, ...], int] = {}
"""A number for every file as it was opened: half of a tile's key in the cache."""

_MOST_TOKENS = 1 << 16

_HANDLES = Handles(limits.open_images())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_CACHE.after_fork)
    os.register_at_fork(after_in_child=_HANDLES.after_fork)


def shared_cache() -> TileCache[Tile]:
    """The process's cache of decoded tiles, shared by all open pyramids."""
    return _CACHE


def forget_tiles(pyramids: Collection[Pyramid]) -> None:
    """Keep nothing of images that will not be read again."""
    _CACHE.drop({pyramid.token for pyramid in pyramids})
    for pyramid in pyramids:
        _TOKENS.pop(pyramid._named, None)


class Pyramid(ABC):
    """One open image, read by region and size.

    Pickles as path and options; after a fork it reopens in the child. Safe from several threads.
    ``cost`` counts what was decoded since it was opened.
    """

    backend: ClassVar[str]

    levels: tuple[Level, ...]
    mpp: float | None
    said_mpp: str | None = None
    """The mpp in the file's own words, believable or not."""
    bounds: Region
    properties: Mapping[str, str]

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mpp: float | None = None,
        channels: Channels | None = None,
        window: Window | None = None,
        shrink: bool = False,
        cache: TileCache[Tile] | None = None,
        limit: TimeLimit | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.limit = limit or TimeLimit()
        self._options: dict[str, Any] = {"mpp": mpp, "channels": channels, "window": window, "shrink": shrink}
        self._cache = _CACHE if cache is None else cache
        self._disk = disk_cache()
        self._lock = RLock()
        self._readers, self._closed, self._parked = 0, False, False
        self.cost = Cost()
        self._distinct: set[Key] = set()
        count, chosen = check_channels(channels)
        with self.limit.running():
            self._open_here()
        self.limit.check(self.path)
        self.cost.tiles_total = self.tiles_total
        white = self._stored_background()
        background = white if count == 3 else tuple(round(float(v)) for v in luma(np.array([white], float))[0])
        samples = self.samples
        deep = samples.dtype.itemsize > 1
        given = (window if deep else None) or samples.window
        self.pixel_rule = PixelRule(samples, count, chosen, given, background)
        self.pixel_rule.check(self.path)
        if deep and given is None:
            with self.limit.running():
                self.pixel_rule = PixelRule(samples, count, chosen, self._percentile_window(), background)
        _HANDLES.used(self)

    # What a backend writes.

    samples: Samples

    @abstractmethod
    def _open(self) -> None:
        """Open ``self.path``; set levels, mpp, bounds, properties, samples; else raise PyramidError."""

    @abstractmethod
    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile | None:
        """Decode one stored tile; None where the format declares it empty. Called from several threads.

        Args:
            shrink: 1, or what ``_most_shrink`` allows: each sample is then one of ``shrink`` x ``shrink`` pixels.
        """

    def _most_shrink(self, level: int) -> int:
        """How much the decoder of a level can shrink tiles: 1, 2, 4 or 8."""
        return 1

    def stored_tile(self, key: Key) -> Key:
        """The tile that is decoded when a level's tile is needed: itself, but where several are made from one."""
        return key

    def _stored_background(self) -> tuple[int, ...]:
        """RGB outside the image: the file's own, else white."""
        return 255, 255, 255

    prefetches: bool = False
    """Whether it is of use to know which tiles will be decoded next: where each would be asked for alone, slowly."""

    def _prefetch(self, keys: Sequence[Key]) -> None:  # noqa: B027 (of use to slow sources only)
        """Say which tiles will be decoded next, so that they can be fetched together."""

    def _is_slow(self, level: int) -> bool:
        """Whether a tile of a level takes longer to get than to read back from a disk: it may be kept there."""
        return False

    def _believed_mpp(self, said: object) -> float | None:
        """Return what the file says as its mpp where it can be one; keeps what was said for ``info``."""
        self.said_mpp = None if said is None else str(said)
        return plausible_mpp(said)

    def _close(self) -> None:  # noqa: B027 (most backends hold no handle)
        """Give back file handles."""

    # Opening, closing, pickling.

    def _open_here(self) -> None:
        self._pid = os.getpid()
        found = self._file_identity()
        if getattr(self, "_identity", found) != found:  # opened again, after a fork or where it was parked
            raise ImageChangedError(self.path)
        self._identity = found
        self._open()
        if self._options["mpp"] is not None:
            self.mpp = self._options["mpp"]
        # Keyed by identity, so that a file replaced under the same name finds no old tiles.
        self._parked = False
        if len(_TOKENS) > _MOST_TOKENS:
            _TOKENS.clear()  # numbers are never given twice
        named = self.path, self._identity, self.backend, tuple(map(str, self._options.values()))
        self._token = _TOKENS.setdefault(named, next(_NUMBERS))
        self._named = named
        self._opened_in = os.getpid()

    def _file_identity(self) -> tuple[Hashable, ...]:
        return identity(self.path)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the file open for a read, after checking that it is the one that was opened."""
        if os.getpid() != self._opened_in and not self._closed:
            with threads.reopening:
                if os.getpid() != self._opened_in:
                    self._lock, self._readers = RLock(), 0
                    self._open_here()
        with self._lock:
            if self._closed:
                raise PyramidError(f"{self.path}: the pyramid is closed")
            self.check_unchanged()
            if self._parked:
                self._open_here()
            self._readers += 1
        _HANDLES.used(self)
        try:
            yield
            # Some libraries open the file by its name again and again.
            self.check_unchanged()
        finally:
            with self._lock:
                self._readers -= 1
                if self._closed and self._readers == 0:
                    self._close()

    def check_unchanged(self) -> None:
        """Raise ImageChangedError where the file is not the one that was opened, PyramidError where it is missing."""
        # Every request for a remote file carries the condition that it is the same.
        if not is_url(self.path) and self._file_identity() != self._identity:
            raise ImageChangedError(self.path)

    def park(self) -> bool:
        """Give back file handles until the next read, which opens them again; False while reads are under way."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._readers:
                return False
            if not (self._closed or self._parked):
                self._close()
                self._parked = True
            return True
        finally:
            self._lock.release()

    def close(self) -> None:
        """Give back file handles; reading afterwards is an error. Reads under way end first."""
        _HANDLES.forget(self)
        with self._lock:
            if not self._closed:
                self._closed = True
                if self._readers == 0:
                    self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (type(self), self.path, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, {self.width} x {self.height}, {len(self.levels)} levels)"

    @property
    def width(self) -> int:
        return self.levels[0].width

    @property
    def height(self) -> int:
        return self.levels[0].height

    @property
    def channels(self) -> int:
        """1 or 3: what ``read`` gives."""
        return self.pixel_rule.channels

    @property
    def background(self) -> tuple[int, ...]:
        """The value of every pixel outside the image, of ``channels`` values 0..255."""
        return self.pixel_rule.background

    @property
    def token(self) -> int | None:
        """A number for this state of the file as it is read, never given twice in a process; None where it has none."""
        return self._token

    @property
    def tiles_total(self) -> int:
        return sum(level.columns * level.rows for level in self.levels)

    # Reading.

    def level_for(self, region: Region, size: tuple[int, int]) -> Level:
        """Return the coarsest level that gives the region at ``size`` (width, height) without upsampling."""
        wanted_x, wanted_y = region.width / size[0], region.height / size[1]
        wanted_x, wanted_y = wanted_x * (1 + 1e-9), wanted_y * (1 + 1e-9)
        for level in reversed(self.levels):
            if level.downsample_x <= wanted_x and level.downsample_y <= wanted_y:
                return level
        return self.levels[0]

    def read(self, region: Region, size: int | tuple[int, int], *, mask: bool = False) -> Tile:
        """Return one patch: the area-weighted mean over the region, outside the image background.

        Args:
            region: where, in level-0 pixels; may reach outside the image.
            size: side, or (width, height), of the patch in pixels.
            mask: also say which pixels are stored image.

        Raises:
            CorruptImageError: a tile cannot be decoded; names file, level, column and row.
            RegionError: a region without area or a size below 1.
        """
        patches = self.read_many([region], size, mask=mask)
        if patches.errors[0] is not None:
            raise patches.errors[0]
        return Tile(patches.pixels[0], None if patches.valid is None else patches.valid[0])

    def read_many(
        self,
        regions: Sequence[Region],
        size: int | tuple[int, int],
        *,
        out: NDArray[np.uint8] | None = None,
        mask: bool = False,
    ) -> Patches:
        """Return a patch for every region; each stored tile that they touch is decoded once, in file order.

        A region whose tile cannot be decoded has its error in ``errors`` and undefined pixels; the others are
        read.
        """
        width, height = size if isinstance(size, tuple) else (size, size)
        if width < 1 or height < 1:
            raise RegionError(f"{self.path}: a patch needs at least one pixel, got {width} x {height}")
        shape = len(regions), height, width, self.channels
        if out is not None and (out.shape != shape or out.dtype != np.uint8):
            raise RegionError(f"{self.path}: `out` must be uint8 of shape {shape}, got {out.dtype} of {out.shape}")
        with self.limit.running(), self._in_use():
            requests = [self._request(i, region, (width, height)) for i, region in enumerate(regions)]
            patches = Patches(
                np.empty(shape, np.uint8) if out is None else out,
                np.empty(shape[:3], np.bool_) if mask else None,
                [None] * len(regions),
            )
            try:
                batch = Batch(requests, self.background, patches)
            except RegionError as error:
                raise RegionError(f"{self.path}: {error}") from None
            for run in batch.runs(self.levels):
                if self.prefetches:
                    self._prefetch([key for key, shrink in run if not self._is_cached(key, shrink)])
                self._deliver(batch, run)
        return patches

    def _deliver(self, batch: Batch, run: Sequence[Planned]) -> None:
        """Decode tiles and put them where they are wanted, in several threads."""

        def work(left: Iterator[Planned]) -> None:
            for planned in left:
                try:
                    tile: Tile | PyramidError | None = self._tile(*planned)
                except PyramidError as error:
                    tile = without_frames(error)
                batch.deliver(planned, tile)

        def help_out(left: Iterator[Planned]) -> None:
            with self.limit.running():
                work(left)

        # Each thread takes the next tile of the file; this one too, so that a busy pool holds nobody up.
        left = iter(run)
        helpers = [decode_pool().submit(help_out, left) for _ in range(min(decode_threads(), len(run)) - 1)]
        try:
            work(left)
        finally:
            for helper in helpers:
                if not helper.cancel():  # one that has not begun has nothing left to do
                    with self.limit.waiting():
                        helper.result()

    def _request(self, index: int, region: Region, size: tuple[int, int]) -> Request:
        x, y, region_width, region_height = region.as_tuple()
        has_area = 0 < region_width < math.inf and 0 < region_height < math.inf
        if not (has_area and math.isfinite(x) and math.isfinite(y)):
            raise RegionError(f"{self.path}: cannot read {region}: it has no area or is not finite")
        level = self.level_for(region, size)
        box = box_of(region, size, level, (self.width, self.height))
        if not (box.step_x > 0 and box.step_y > 0):
            raise RegionError(f"{self.path}: cannot read {region}: so far out it has no area in floating point")
        return Request(index, level, box, box.is_copy, self._shrink(level, box))

    def _shrink(self, level: Level, box: Box) -> int:
        """What tiles are shrunk by while they are decoded: as far as a shrunk pixel is no larger than a patch pixel."""
        if not self._options["shrink"]:
            return 1
        return 1 << int(math.log2(max(1.0, min(self._most_shrink(level.index), box.step_x, box.step_y))))

    def _tile(self, key: Key, shrink: int = 1) -> Tile | None:
        """One tile as model pixels, cached or decoded and counted; None where it is declared empty."""
        cached = self._recall(key, shrink)
        if cached is not None:
            with self._lock:
                self._count_distinct(key)
            return cached
        raw = self._raw_tile(key, shrink)
        if raw is None:
            return None
        tile = Tile(*self.pixel_rule.apply(raw.samples))
        self._keep(tile, key, shrink)
        return tile

    def _recall(self, key: Key, shrink: int = 1) -> Tile | None:
        """A tile from the cache in memory, or else from that on the disk."""
        tile = self._cache.get((self._token, key, shrink))
        if tile is None and self._disk is not None and self._is_slow(key[0]):
            tile = self._disk.get(name_of(self._named, key, shrink))
            if tile is not None:
                self._cache.put((self._token, key, shrink), tile)
        return tile

    def _keep(self, tile: Tile, key: Key, shrink: int = 1) -> None:
        self._cache.put((self._token, key, shrink), tile)
        if self._disk is not None and self._is_slow(key[0]):
            self._disk.put(name_of(self._named, key, shrink), tile)

    def _is_cached(self, key: Key, shrink: int) -> bool:
        if (self._token, key, shrink) in self._cache:
            return True
        return self._disk is not None and self._is_slow(key[0]) and name_of(self._named, key, shrink) in self._disk

    def _raw_tile(self, key: Key, shrink: int = 1) -> RawTile | None:
        """Decode one tile and count it."""
        self.limit.check(self.path)
        try:
            raw = self._decode_tile(*key, shrink)
        except PyramidError:
            raise
        except Exception as error:  # codecs raise whatever damaged bytes lead them to
            level, column, row = key
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise CorruptImageError(self.path, reason, level=level, column=column, row=row) from error
        if raw is None:
            return None
        samples, stored_bytes = raw
        height, width, _ = samples.shape
        whole = self.levels[key[0]]
        if height * shrink < whole.tile_height or width * shrink < whole.tile_width:
            self._check_size(key, width * shrink, height * shrink)
        with self._lock:
            cost = self.cost
            cost.tiles_decoded += 1
            cost.pixels_decoded += height * width
            if stored_bytes is None:
                cost.bytes_read = None
            elif cost.bytes_read is not None:
                cost.bytes_read += stored_bytes
            self._count_distinct(key)
        return raw

    def _count_distinct(self, key: Key) -> None:
        self._distinct.add(key)
        self.cost.tiles_distinct = len(self._distinct)

    def _check_size(self, key: Key, width: int, height: int) -> None:
        """A tile may end where the image ends, and not before: what follows does not look again."""
        level = self.levels[key[0]]
        place = level.tile_at(key[1], key[2])
        if height < place.height or width < place.width:
            reason = f"the tile is {width} x {height} pixels, but {level.tile_width} x {level.tile_height} are declared"
            raise CorruptImageError(self.path, reason, level=key[0], column=key[1], row=key[2])

    def _percentile_window(self) -> Window | None:
        """Of what the model sees of the coarsest level, counted in the cost; None where that is too large."""
        level = self.levels[-1]
        if level.width * level.height > MAX_WINDOW_PIXELS:
            return None
        seen = list(wanted_samples(self.samples.colors, self._options["channels"]))
        values = []
        for row in range(level.rows):
            for column in range(level.columns):
                raw = self._raw_tile((level.index, column, row))
                if raw is not None:
                    right, bottom = (
                        level.width - column * level.tile_width,
                        level.height - row * level.tile_height,
                    )
                    values.append(raw.samples[:bottom, :right, seen].ravel())
        return display_window(values)

    def __del__(self) -> None:
        # A pyramid that failed while opening has no handle to give back.
        if getattr(self, "_pid", None) == os.getpid():
            self._close()


def _reopen(cls: type[Pyramid], path: str, options: dict[str, Any]) -> Pyramid:
    return cls(path, **options)
