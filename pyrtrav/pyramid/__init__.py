"""Open any image as a pyramid: levels of tiles, read by region and size."""

from __future__ import annotations

from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.open import BACKENDS, open_pyramid
from pyrtrav.pyramid.tiles import Level, Patches, RawTile, Tile

__all__ = ["BACKENDS", "Level", "Patches", "Pyramid", "RawTile", "Tile", "open_pyramid"]
