"""A large TIFF in compressed strips, without coarser levels: read through a tiled pyramid that is made of it once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

from pyrtrav.geometry import Region
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.converted import Conversion, tiled_levels
from pyrtrav.pyramid.limits import whole_pixels
from pyrtrav.pyramid.tiff import TiffPyramid
from pyrtrav.pyramid.tiles import RawTile
from pyrtrav.pyramid.vips import converted_samples


def lacks_levels(pyramid: TiffPyramid) -> bool:
    """Whether a glance would decode more than is decoded at once, in strips that cannot be read in part."""
    coarsest = pyramid.levels[-1]
    return coarsest.tile_width >= coarsest.width and coarsest.width * coarsest.height > whole_pixels()


class StripedTiffPyramid(Pyramid):
    """Levels, tiles and their bytes in the cost are those of the converted pyramid; samples are the TIFF's."""

    backend: ClassVar[str] = "tiff"
    _conversion: Conversion | None = None

    def _file_identity(self) -> tuple[Hashable, ...]:
        return (*super()._file_identity(), "converted")  # its tiles are not those of the strips

    def _open(self) -> None:
        with TiffPyramid(self.path, window=(0, 1)) as source:
            self.mpp, self.samples = source.mpp, converted_samples(source.samples)
            width, height = source.width, source.height
            properties = dict(source.properties)
        self.levels = tuple(tiled_levels(width, height))
        self.bounds = Region(0, 0, width, height)
        self._conversion = Conversion(self.path, self.levels, self.samples)
        self.properties = {**properties, "converted": str(self._conversion)}

    def _decode_tile(self, level: int, column: int, row: int, shrink: int = 1) -> RawTile | None:
        assert self._conversion is not None  # made when it was opened
        return self._conversion.tile(level, column, row)

    def _close(self) -> None:
        if self._conversion is not None:
            self._conversion.close()
