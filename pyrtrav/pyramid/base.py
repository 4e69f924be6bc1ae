"""One open image: levels, and reading by region and size. A backend writes how it opens and how it decodes one tile."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock, RLock
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from pyrtrav.cost import Cost
from pyrtrav.errors import CorruptImageError, PyramidError, RegionError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.cache import TileCache, default_cache_bytes
from pyrtrav.pyramid.pixels import Channels, PixelRule, Samples, Window, check_channels, luma
from pyrtrav.pyramid.resample import AreaMean, Mosaic, patch_builder

MPP_RANGE = (0.02, 50.0)
"""Micrometres per pixel that are believed; anything else (72 dpi, 0, 1e308) is a missing value."""

MAX_TILE_PIXELS = 64 << 20
"""A tile above this is refused before it is decoded."""

MAX_WINDOW_PIXELS = 16 << 20
"""Levels larger than this are not read whole to find a display range."""

# Decoded tiles that wait to be pasted; bounds the memory of a batch of any size.
_BATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Level:
    """One stored resolution. ``tile_width`` and ``tile_height`` are the file's storage unit, in the level's pixels."""

    index: int
    width: int
    height: int
    downsample_x: float
    downsample_y: float
    tile_width: int
    tile_height: int

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile_width)

    @property
    def rows(self) -> int:
        return -(-self.height // self.tile_height)


class Tile(NamedTuple):
    """Pixels (h, w, channels) and which of them are stored image; None where all are."""

    pixels: NDArray[np.uint8]
    valid: NDArray[np.bool_] | None = None

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + (0 if self.valid is None else self.valid.nbytes)


class Patches(NamedTuple):
    """Patches (n, height, width, channels), their masks if asked for, and per region what went wrong."""

    pixels: NDArray[np.uint8]
    valid: NDArray[np.bool_] | None
    errors: list[PyramidError | None]


class RawTile(NamedTuple):
    """What a backend decodes: samples (h, w, n) as stored, and how many compressed bytes it read for them."""

    samples: NDArray[Any]
    stored_bytes: int | None


Key = tuple[int, int, int]
"""Level, column, row."""

_CACHE: TileCache[Tile] = TileCache(default_cache_bytes())
_POOL: tuple[int, int, ThreadPoolExecutor] | None = None
_POOL_LOCK = Lock()


def decode_threads() -> int:
    """``PYRTRAV_THREADS``, else the processors that this process may use."""
    return int(os.environ.get("PYRTRAV_THREADS", 0)) or len(os.sched_getaffinity(0))


def shared_cache() -> TileCache[Tile]:
    """The process's cache of decoded tiles, shared by all open pyramids."""
    return _CACHE


def _pool() -> ThreadPoolExecutor:
    """The process's decoding threads; a forked child gets its own."""
    global _POOL
    with _POOL_LOCK:
        threads, pid = decode_threads(), os.getpid()
        if _POOL is None or _POOL[:2] != (pid, threads):
            _POOL = (pid, threads, ThreadPoolExecutor(threads, thread_name_prefix="pyrtrav-decode"))
        return _POOL[2]


@dataclass
class _Request:
    """One region of a batch: where it lies in its level and which tiles it still waits for."""

    index: int
    level: Level
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    left_over: int = 0
    builder: Mosaic | AreaMean | None = None


class Pyramid(ABC):
    """One open image, read by region and size.

    Pickles as path and options; after a fork it reopens in the child. Safe from several threads.
    ``cost`` counts what was decoded since it was opened.
    """

    backend: ClassVar[str]

    levels: tuple[Level, ...]
    mpp: float | None
    bounds: Region
    properties: Mapping[str, str]

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        mpp: float | None = None,
        channels: Channels | None = None,
        window: Window | None = None,
        cache: TileCache[Tile] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._options: dict[str, Any] = {"mpp": mpp, "channels": channels, "window": window}
        self._cache = _CACHE if cache is None else cache
        self._lock = RLock()
        self.cost = Cost()
        self._distinct: set[Key] = set()
        count, chosen = check_channels(channels)
        self._open_here()
        white = self._stored_background()
        background = white if count == 3 else tuple(int(round(v)) for v in luma(np.array([white], float))[0])
        samples = self.samples
        self.pixel_rule = PixelRule(samples, count, chosen, window or samples.window, background)
        self.pixel_rule.check(self.path)
        if self.pixel_rule.window is None and samples.dtype.itemsize > 1:
            self.pixel_rule = PixelRule(samples, count, chosen, self._percentile_window(), background)

    # What a backend writes.

    samples: Samples

    @abstractmethod
    def _open(self) -> None:
        """Open ``self.path`` and set levels, mpp, bounds, properties, samples; raise PyramidError where it cannot."""

    @abstractmethod
    def _decode_tile(self, level: int, column: int, row: int) -> RawTile | None:
        """Decode one stored tile; None where the format declares it empty. Called from several threads."""

    def _stored_background(self) -> tuple[int, ...]:
        """RGB outside the image: the file's own, else white."""
        return 255, 255, 255

    def _close(self) -> None:
        """Give back file handles."""

    # Opening, closing, pickling.

    def _open_here(self) -> None:
        self._pid = os.getpid()
        self._identity = self._file_identity()
        self._open()
        if self._options["mpp"] is not None:
            self.mpp = self._options["mpp"]
        # Keyed by identity, so that a file replaced under the same name finds no old tiles.
        self._token = (self.path, self._identity, self.backend, tuple(map(str, self._options.values())))

    def _file_identity(self) -> tuple[int, ...]:
        try:
            stat = os.stat(self.path)
        except OSError as error:
            raise PyramidError(f"{self.path}: {error.strerror or error}") from error
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            self._lock = RLock()
            self._open_here()
        if self._file_identity() != self._identity:
            raise CorruptImageError(self.path, "the file changed since it was opened; open it again")

    def close(self) -> None:
        """Give back file handles; reading afterwards is an error."""
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
    def tiles_total(self) -> int:
        return sum(level.columns * level.rows for level in self.levels)

    # Reading.

    def level_for(self, region: Region, size: tuple[int, int]) -> Level:
        """Return the coarsest stored level that gives the region at ``size`` (width, height) without upsampling."""
        wanted_x, wanted_y = region.width / size[0], region.height / size[1]
        fine_enough = [
            level
            for level in self.levels
            if level.downsample_x <= wanted_x * (1 + 1e-9) and level.downsample_y <= wanted_y * (1 + 1e-9)
        ]
        return fine_enough[-1] if fine_enough else self.levels[0]

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

        A region whose tile cannot be decoded has its error in ``errors`` and undefined pixels; the others are read.
        """
        width, height = size if isinstance(size, tuple) else (size, size)
        if width < 1 or height < 1:
            raise RegionError(f"{self.path}: a patch needs at least one pixel, got {width} x {height}")
        self._check_open()
        pixels = np.empty((len(regions), height, width, self.channels), np.uint8) if out is None else out
        valid = np.empty((len(regions), height, width), np.bool_) if mask else None
        patches = Patches(pixels, valid, [None] * len(regions))
        requests = [self._request(i, region, (width, height)) for i, region in enumerate(regions)]
        plan = self._plan(requests)
        for request in requests:
            if request.left_over == 0:
                self._finish(request, patches)
        for batch in self._batches(plan):
            for key, tile in zip(batch, _pool().map(self._tile_or_error, batch), strict=True):
                self._paste(key, tile, plan.pop(key), patches)
        return patches

    def _request(self, index: int, region: Region, size: tuple[int, int]) -> _Request:
        if not (region.width > 0 and region.height > 0 and all(np.isfinite(region.as_tuple()))):
            raise RegionError(f"{self.path}: cannot read {region}: it has no area or is not finite")
        level = self.level_for(region, size)
        scale_x, scale_y = level.width / self.width, level.height / self.height
        box = (
            region.x * scale_x,
            region.y * scale_y,
            region.width * scale_x / size[0],
            region.height * scale_y / size[1],
        )
        return _Request(index, level, box, size)

    def _plan(self, requests: Sequence[_Request]) -> OrderedDict[Key, list[_Request]]:
        """Every tile with the regions that need it, in file order."""
        wanted: dict[Key, list[_Request]] = {}
        for request in requests:
            level, (left, top, step_x, step_y) = request.level, request.box
            columns = _tile_range(left, step_x * request.size[0], level.tile_width, level.width)
            rows = _tile_range(top, step_y * request.size[1], level.tile_height, level.height)
            request.left_over = len(columns) * len(rows)
            for row in rows:
                for column in columns:
                    wanted.setdefault((level.index, row, column), []).append(request)
        return OrderedDict(((level, column, row), wanted[level, row, column]) for level, row, column in sorted(wanted))

    def _batches(self, plan: Mapping[Key, object]) -> list[list[Key]]:
        """The plan's tiles in runs whose decoded size is bounded."""
        batches: list[list[Key]] = [[]]
        held = 0
        for key in plan:
            level = self.levels[key[0]]
            size = level.tile_width * level.tile_height * self.channels
            if batches[-1] and held + size > _BATCH_BYTES:
                batches.append([])
                held = 0
            batches[-1].append(key)
            held += size
        return batches

    def _tile_or_error(self, key: Key) -> Tile | PyramidError | None:
        try:
            return self._tile(key)
        except PyramidError as error:
            return error

    def _tile(self, key: Key) -> Tile | None:
        """One tile as model pixels, from the cache or decoded and counted; None where it is declared empty."""
        cached = self._cache.get((self._token, key))
        if cached is not None:
            with self._lock:
                self._count_distinct(key)
            return cached
        raw = self._decode_tile(*key)
        if raw is None:
            return None
        self._count(key, raw)
        tile = Tile(*self.pixel_rule.apply(raw.samples))
        self._cache.put((self._token, key), tile)
        return tile

    def _count(self, key: Key, raw: RawTile) -> None:
        with self._lock:
            self.cost.tiles_decoded += 1
            self.cost.pixels_decoded += raw.samples.shape[0] * raw.samples.shape[1]
            if raw.stored_bytes is None:
                self.cost.bytes_read = None
            elif self.cost.bytes_read is not None:
                self.cost.bytes_read += raw.stored_bytes
            self._count_distinct(key)

    def _count_distinct(self, key: Key) -> None:
        self._distinct.add(key)
        self.cost.tiles_distinct = len(self._distinct)

    def _paste(
        self, key: Key, tile: Tile | PyramidError | None, requests: Sequence[_Request], patches: Patches
    ) -> None:
        """Add one tile to every region that waits for it, and finish those that wait for no other."""
        level = self.levels[key[0]]
        x, y = key[1] * level.tile_width, key[2] * level.tile_height
        width, height = min(level.tile_width, level.width - x), min(level.tile_height, level.height - y)
        for request in requests:
            request.left_over -= 1
            if isinstance(tile, PyramidError):
                patches.errors[request.index] = patches.errors[request.index] or tile
                request.builder = None
            elif patches.errors[request.index] is None:
                pixels, valid = (None, None) if tile is None else tile
                self._builder(request, patches).add(pixels, valid, x, y, width, height)
            if request.left_over == 0:
                self._finish(request, patches)

    def _builder(self, request: _Request, patches: Patches) -> Mosaic | AreaMean:
        if request.builder is None:
            size = request.level.width, request.level.height
            request.builder = patch_builder(
                request.box, request.size, size, self.background, mask=patches.valid is not None
            )
        return request.builder

    def _finish(self, request: _Request, patches: Patches) -> None:
        if patches.errors[request.index] is None:
            builder = self._builder(request, patches)
            patches.pixels[request.index] = builder.result()
            valid = builder.result_valid()
            if patches.valid is not None and valid is not None:
                patches.valid[request.index] = valid
        request.builder = None

    def _percentile_window(self) -> Window | None:
        """The 0.1 to 99.9 percentiles of the coarsest level, counted in the cost; None where that is too large."""
        level = self.levels[-1]
        if level.width * level.height > MAX_WINDOW_PIXELS:
            return None
        values = []
        for row in range(level.rows):
            for column in range(level.columns):
                raw = self._decode_tile(level.index, column, row)
                if raw is not None:
                    self._count((level.index, column, row), raw)
                    right, bottom = level.width - column * level.tile_width, level.height - row * level.tile_height
                    values.append(raw.samples[:bottom, :right, : self.samples.colors].ravel())
        finite = np.concatenate(values or [np.zeros(1)])
        finite = finite[np.isfinite(finite)]
        low, high = np.percentile(finite, [0.1, 99.9]) if finite.size else (0.0, 1.0)
        return (float(low), float(high)) if high > low else None

    def __del__(self) -> None:
        # A pyramid that failed while opening has no handle to give back.
        if getattr(self, "_pid", None) == os.getpid():
            self._close()


def _tile_range(start: float, length: float, tile: int, limit: int) -> range:
    """The tiles along one axis that share area with ``start .. start + length``, within the image."""
    first, last = max(start, 0.0), min(start + length, float(limit))
    if last <= first:
        return range(0)
    return range(int(first // tile), int(-(-last // tile)))


def _reopen(cls: type[Pyramid], path: str, options: dict[str, Any]) -> Pyramid:
    return cls(path, **options)


def plausible_mpp(value: object) -> float | None:
    """Return the value as micrometres per pixel where it is believable (see MPP_RANGE), else None."""
    try:
        mpp = float(str(value).replace(",", "."))
    except ValueError:
        return None
    return mpp if MPP_RANGE[0] <= mpp <= MPP_RANGE[1] else None
