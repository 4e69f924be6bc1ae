"""An image in memory, read by the same function as a file: for tensors, and as the truth in tests."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyrtrav.errors import RegionError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.pixels import Channels, Samples, Window
from pyrtrav.pyramid.tiles import Key, Level, RawTile, Tile


class ArrayPyramid(Pyramid):
    """An array (h, w) or (h, w, samples) as a pyramid of one level and one tile.

    Nothing is read, so it costs nothing.
    """

    backend: ClassVar[str] = "array"

    def __init__(
        self,
        pixels: NDArray[Any],
        *,
        mpp: float | None = None,
        channels: Channels | None = None,
        window: Window | None = None,
    ) -> None:
        if pixels.ndim not in (2, 3) or 0 in pixels.shape:
            raise RegionError(f"an image array is (height, width) or (height, width, samples), got {pixels.shape}")
        self._array = pixels.reshape(*pixels.shape[:2], -1)
        super().__init__("<array>", mpp=mpp, channels=channels, window=window)

    def _file_identity(self) -> tuple[Hashable, ...]:
        return (id(self._array),)

    @property
    def token(self) -> int | None:
        return None  # the next array may lie where this one lay

    def _open(self) -> None:
        height, width, count = self._array.shape
        self.levels = (Level(0, width, height, 1.0, 1.0, width, height),)
        self.mpp, self.bounds, self.properties = None, Region(0, 0, width, height), {}
        self.samples = Samples(count - (count in (2, 4)), self._array.dtype, "straight" if count in (2, 4) else "none")
        self._tiles: dict[Key, Tile] = {}

    def _tile(self, key: Key, shrink: int = 1) -> Tile | None:
        if key not in self._tiles:
            self._tiles[key] = Tile(*self.pixel_rule.apply(self._array))
        return self._tiles[key]

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile | None:
        return RawTile(self._array, 0)

    def __reduce__(self) -> tuple[object, ...]:
        return _from_array, (self._array, {k: v for k, v in self._options.items() if k != "shrink"})


def _from_array(pixels: NDArray[Any], options: dict[str, Any]) -> ArrayPyramid:
    return ArrayPyramid(pixels, **options)


def halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mean of every 2 x 2 pixels, halves rounded up; an odd last row or column has fewer."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(image.reduce(2)).reshape(-(-pixels.shape[0] // 2), -(-pixels.shape[1] // 2), -1)
