"""Open any image as a pyramid: levels of tiles, read by region and size."""

from __future__ import annotations

from pyrtrav.pyramid.base import Level, Patches, Pyramid, RawTile, Tile
from pyrtrav.pyramid.open import BACKENDS, open_pyramid

__all__ = ["BACKENDS", "Level", "Patches", "Pyramid", "RawTile", "Tile", "open_pyramid"]
