"""Draw what a parse tree says was looked at. No torch: old trees redraw anywhere."""

from __future__ import annotations

from pyrtrav.explain.foveated import draw_foveated, save_foveated
from pyrtrav.explain.geojson import save_geojson, to_geojson
from pyrtrav.explain.overlay import draw_overlay, save_overlay
from pyrtrav.explain.page import draw_page, save_page
from pyrtrav.explain.strip import draw_strip, save_strip

__all__ = [
    "draw_foveated",
    "draw_overlay",
    "draw_page",
    "draw_strip",
    "save_foveated",
    "save_geojson",
    "save_overlay",
    "save_page",
    "save_strip",
    "to_geojson",
]
