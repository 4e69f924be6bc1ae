"""Draw what a parse tree says was looked at. No torch: old trees redraw anywhere."""

from __future__ import annotations

from pyrtrav.explain.foveated import draw_foveated, save_foveated
from pyrtrav.explain.overlay import draw_overlay, save_overlay

__all__ = ["draw_foveated", "draw_overlay", "save_foveated", "save_overlay"]
