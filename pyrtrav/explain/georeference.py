"""Pixels of a georeferenced TIFF as places on the map, by rasterio (the extra ``geo``).

GeoJSON is longitude and latitude in WGS 84 (RFC 7946): ``wgs84``. ``native`` is the file's own reference system,
which a ``crs`` member names, as GDAL writes and reads it.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pyrtrav.errors import ConfigError, nearest_name
from pyrtrav.explain.geojson import Geometry, corners, counterclockwise
from pyrtrav.geometry import Region

SYSTEMS = ("wgs84", "native")

_WGS84 = "EPSG:4326"
_PARTS = 8
"""Straight pieces an edge for longitude and latitude, where a straight edge of the image is a curve: the edge of
100 km is then off by 3 m at 45 degrees, not by 200."""

_DECIMALS = 9
"""Of longitude and latitude: a tenth of a millimetre."""


@dataclass(frozen=True, slots=True)
class MapCoordinates:
    """Where the pixels of one file lie on the map."""

    system: str
    """``wgs84`` or ``native``."""
    transform: tuple[float, ...]
    """Of pixels to the file's system: a, b, c, d, e, f; x = a column + b row + c, y = d column + e row + f."""
    wkt: str
    """The file's reference system."""
    epsg: int | None
    """Its number, where it has one."""

    @classmethod
    def of(cls, path: str | os.PathLike[str], system: str = "wgs84") -> MapCoordinates:
        """Return the map coordinates of a TIFF.

        Raises:
            ConfigError: the extra is missing, the file has no georeference, or its system has no name to write.
        """
        if system not in SYSTEMS:
            raise ConfigError(f"no coordinates are called {system!r}{nearest_name(system, SYSTEMS)}")
        transform, wkt, epsg = _georeference(os.fspath(path))
        if system == "native" and epsg is None:
            raise ConfigError(f"{path}: its reference system has no EPSG number to name in GeoJSON; use --crs wgs84")
        return cls(system, transform, wkt, epsg)

    @property
    def members(self) -> dict[str, Any]:
        if self.system == "native":
            return {"coordinates": f"EPSG:{self.epsg}"}
        return {"coordinates": "longitude and latitude, WGS 84"}

    @property
    def crs(self) -> str | None:
        # RFC 7946 has one system and no name for it.
        return None if self.system == "wgs84" else f"urn:ogc:def:crs:EPSG::{self.epsg}"

    def geometry(self, region: Region) -> Geometry:
        """Return the region on the map; one that crosses the 180th meridian is cut there, as RFC 7946 asks."""
        if self.system == "native":
            return {"type": "Polygon", "coordinates": [counterclockwise(self._placed(corners(region)))]}
        from rasterio.warp import transform_geom

        flat = {"type": "Polygon", "coordinates": [self._placed(_densified(corners(region)))]}
        found = transform_geom(self.wkt, _WGS84, flat, antimeridian_cutting=True)
        polygons = found["coordinates"] if found["type"] == "MultiPolygon" else [found["coordinates"]]
        turned = [[_rounded(counterclockwise([list(point) for point in rings[0]]))] for rings in polygons]
        if len(turned) == 1:
            return {"type": "Polygon", "coordinates": turned[0]}
        return {"type": "MultiPolygon", "coordinates": turned}

    def _placed(self, ring: list[tuple[float, float]]) -> list[list[float]]:
        a, b, c, d, e, f = self.transform
        return [[a * x + b * y + c, d * x + e * y + f] for x, y in ring]


def _georeference(path: str) -> tuple[tuple[float, ...], str, int | None]:
    """The transform of pixels to the file's reference system, that system as WKT, and its EPSG number."""
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ImportError as error:
        raise ConfigError("map coordinates need the extra `geo`: pip install 'pyrtrav[geo]'") from error
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: map coordinates are read from a TIFF on a disk")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(os.path.abspath(path), driver="GTiff") as file:
                transform, crs, points = file.transform, file.crs, file.gcps[0] or file.rpcs
    except RasterioError as error:
        raise ConfigError(f"{path}: has no map coordinates: is no GeoTIFF ({error})") from error
    if crs is None or transform.is_identity:
        what = "only control points, which need a resampled image" if points else "neither a transform nor a system"
        raise ConfigError(f"{path}: has no map coordinates: it holds {what}; ask for pixels (without --crs)")
    return tuple(transform)[:6], str(crs.to_wkt()), crs.to_epsg()


def _densified(ring: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The ring with points between its corners."""
    points = [
        (x + (u - x) * i / _PARTS, y + (v - y) * i / _PARTS) for (x, y), (u, v) in pairwise(ring) for i in range(_PARTS)
    ]
    return [*points, ring[-1]]


def _rounded(ring: list[list[float]]) -> list[list[float]]:
    return [[round(x, _DECIMALS), round(y, _DECIMALS)] for x, y in ring]
