"""Classify whole-slide and satellite images by looking only where it matters.

``import pyrtrav`` is light: anything that needs torch is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrtrav.predict import Predictor as Predictor
    from pyrtrav.pyramid import open_pyramid as open_pyramid
    from pyrtrav.tree import ParseTree as ParseTree

__version__ = "0.1.0"

_LAZY = {
    "open_pyramid": "pyrtrav.pyramid",
    "ParseTree": "pyrtrav.tree",
    "Predictor": "pyrtrav.predict",
}

__all__ = ["ParseTree", "Predictor", "__version__", "open_pyramid"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pyrtrav' has no attribute {name!r}")
